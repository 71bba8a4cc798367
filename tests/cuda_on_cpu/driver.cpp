// Runs launches in a process of its own, linked with a sanitizer, so that a finding ends this process alone. Each
// buffer is allocated with exactly its size. Reads from standard input, one word after another:
//
//   order O | limit BYTES | buffer FILE BYTES                                       (buffers are numbered from 0)
//   launch LIBRARY KERNEL gx gy gz bx by bz SHARED COUNT, then COUNT of:
//       at BUFFER OFFSET | bytes HEXADECIMAL | map BUFFER OFFSET HEXADECIMAL (which begins with the address)
//
// and writes the buffers back to their files at the end. Exit status 0, or 3 with the emulator's message.

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "launch.h"

struct Buffer {
    std::string file;
    std::size_t bytes;
    char* memory;
};

static std::vector<Buffer> buffers;
static unsigned order, limit;

static const EmulatorLibrary* library_of(const std::string& path) {
    static std::map<std::string, const EmulatorLibrary*> known;
    const EmulatorLibrary*& library = known[path];
    if (!library) {
        void* handle = dlopen(path.c_str(), RTLD_NOW);
        if (!handle) {
            std::cerr << dlerror() << "\n";
            std::exit(4);
        }
        library = reinterpret_cast<const EmulatorLibrary* (*)()>(dlsym(handle, "emulator_library"))();
    }
    return library;
}

static void read_buffer() {
    Buffer buffer;
    std::cin >> buffer.file >> buffer.bytes;
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, buffer.bytes)) std::exit(4);
    buffer.memory = static_cast<char*>(memory);
    std::ifstream(buffer.file, std::ios::binary).read(buffer.memory, std::streamsize(buffer.bytes));
    buffers.push_back(buffer);
}

static void run_launch() {
    std::string path, name, kind, hexadecimal;
    EmulatorLaunch launch{};
    std::size_t count;
    std::cin >> path >> name;
    for (unsigned& g : launch.grid) std::cin >> g;
    for (unsigned& b : launch.block) std::cin >> b;
    std::cin >> launch.shared_bytes >> count;
    launch.order = order, launch.shared_limit = limit;
    std::vector<std::vector<char>> values(count);
    std::vector<void*> arguments;
    for (std::vector<char>& value : values) {
        std::cin >> kind;
        const char* address = nullptr;
        if (kind != "bytes") {
            std::size_t number;
            long long offset;
            std::cin >> number >> offset;
            address = buffers.at(number).memory + offset;
            value.assign(reinterpret_cast<const char*>(&address), reinterpret_cast<const char*>(&address + 1));
        }
        if (kind != "at") {
            std::cin >> hexadecimal;
            for (std::size_t i = 2 * value.size(); i + 1 < hexadecimal.size(); i += 2)
                value.push_back(char(std::stoi(hexadecimal.substr(i, 2), nullptr, 16)));
        }
        arguments.push_back(value.data());
    }
    const EmulatorLibrary* library = library_of(path);
    char message[2000] = "";
    for (int i = 0; i < library->count; i++)
        if (name == library->kernels[i].name) {
            if (emulator_launch(library, &library->kernels[i], &launch, arguments.data(), message, sizeof message)) {
                std::cerr << "emulator: " << message << "\n";
                std::_Exit(3);
            }
            return;
        }
    std::exit(4);
}

int main() {
    std::string word;
    while (std::cin >> word) {
        if (word == "order") std::cin >> order;
        else if (word == "limit") std::cin >> limit;
        else if (word == "buffer") read_buffer();
        else if (word == "launch") run_launch();
        else return 4;
    }
    for (const Buffer& buffer : buffers) {
        std::ofstream(buffer.file, std::ios::binary).write(buffer.memory, std::streamsize(buffer.bytes));
        std::free(buffer.memory);
    }
    return 0;
}
