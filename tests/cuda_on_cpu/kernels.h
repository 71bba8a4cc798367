// The table of kernels that build.py appends to a kernel file: calls with arguments by address, and their types.
#pragma once

#include <string>
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
        static const std::string text = (std::string() + ... + letter<Parameters>());
        return text.c_str();
    }

    template <class T>
    static std::string letter() {
        if (std::is_pointer_v<T>) return "p";
        if (std::is_class_v<T>) return "s" + std::to_string(sizeof(T));
        if (std::is_same_v<T, float>) return "f";
        if (std::is_same_v<T, double>) return "d";
        return sizeof(T) == 8 ? "l" : sizeof(T) == 4 ? "i" : "?";
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
