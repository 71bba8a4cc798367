// The table of kernels that build.py appends to a kernel file: calls with arguments by address, and their types.
#pragma once

#include <type_traits>
#include <utility>

#include "launch.h"

template <class... Parameters>
struct EmulatedKernel {
    template <std::size_t... I>
    static void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[I])...);
    }

    static const char* signature() {
        static char text[12 * sizeof...(Parameters) + 1];
        char* end = text;
        ((end = add<Parameters>(end)), ...);
        *end = 0;
        return text;
    }

    template <class T>
    static char* add(char* end) {
        constexpr std::size_t bytes = sizeof(T);
        const char letter = std::is_pointer_v<T>          ? 'p'
                            : std::is_class_v<T>          ? 's'
                            : std::is_same_v<T, float>    ? 'f'
                            : std::is_same_v<T, double>   ? 'd'
                            : bytes == 8                  ? 'l'
                            : bytes == 4                  ? 'i'
                                                          : '?';
        *end++ = letter;
        if (letter == 's')
            for (std::size_t digit = 10000; digit; digit /= 10)
                if (bytes >= digit) *end++ = char('0' + bytes / digit % 10);
        return end;
    }
};

template <class... Parameters>
EmulatedKernel<Parameters...> emulated_kernel(void (*)(Parameters...)) {
    return {};
}

template <class... Parameters>
void emulator_call(void (*kernel)(Parameters...), void** arguments) {
    EmulatedKernel<Parameters...>::call(kernel, arguments, std::index_sequence_for<Parameters...>());
}

template <class... Rest>
constexpr int emulator_most_threads(int threads, Rest...) {
    return threads;
}
constexpr int emulator_most_threads() { return 1024; }

#define EMULATOR_KERNEL(name, ...)                                                                     \
    {#name, decltype(emulated_kernel(&name))::signature(), emulator_most_threads(__VA_ARGS__),         \
     [](void** arguments) { emulator_call(&name, arguments); }}
