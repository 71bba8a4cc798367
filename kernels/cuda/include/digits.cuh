// A number of three digits that threads count up by a fixed step, so that loops over boxes need no division.
#pragma once
#include "device.cuh"

struct Digits {
    int low, middle, high;
};

__device__ __forceinline__ Digits digits_of(int number, int low, int middle) {
    Digits d;
    d.low = number % low;
    d.middle = number / low % middle;
    d.high = number / low / middle;
    return d;
}

// d += step, where digits run to `low` and `middle`; the high digit has no end.
__device__ __forceinline__ void advance(Digits& d, const Digits& step, int low, int middle) {
    d.low += step.low;
    d.middle += step.middle;
    d.high += step.high;
    if (d.low >= low) {
        d.low -= low;
        ++d.middle;
    }
    if (d.middle >= middle) {
        d.middle -= middle;
        ++d.high;
    }
}
