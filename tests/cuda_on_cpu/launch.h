// What a compiled kernel file hands to the runtime, and how the runtime is called: plain C, for ctypes and driver.cpp.
#pragma once

#include <cstddef>

struct EmulatorKernel {
    const char* name;
    const char* signature;  // one letter a parameter: p pointer, i int, l long long, f float, d double, sN struct
    int most_threads;       // of __launch_bounds__; 1024 where there is none
    void (*call)(void** arguments);
};

struct EmulatorLibrary {
    const EmulatorKernel* kernels;
    int count;
    char *shared_begin, *shared_end;  // the file's static shared arrays
};

struct EmulatorLaunch {
    unsigned grid[3], block[3];
    unsigned shared_bytes;  // dynamic
    unsigned shared_limit;  // of one block, dynamic and static together
    unsigned seconds;       // of the processor's time, after which a kernel is ended (plain builds)
    unsigned order;         // of threads and blocks: 0 ascending, 1 descending, others random with this seed
};

extern "C" {
// 0, or 1 with a message of at most `size` bytes; the process goes on whatever the kernel did.
int emulator_launch(const EmulatorLibrary*, const EmulatorKernel*, const EmulatorLaunch*, void** arguments,
                    char* message, std::size_t size);
}
