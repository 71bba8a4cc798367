// A walk over channels x rows x columns in the order in which they lie in memory, without divisions: NHWC 0 channel,
// row, column; NHWC 1 row, column, channel, the last fastest.
#pragma once
#include "digits.cuh"
#include "layout.cuh"

struct Box {
    int low, middle;
    Digits place, step;

    // From element `first` on, `each` elements at a time.
    __device__ __forceinline__ Box(int channels, int rows, int columns, int first, int each) {
        low = NHWC ? channels : columns;
        middle = NHWC ? columns : rows;
        place = digits_of(first, low, middle);
        step = digits_of(each, low, middle);
    }

    __device__ __forceinline__ int channel() const { return NHWC ? place.low : place.high; }
    __device__ __forceinline__ int row() const { return NHWC ? place.high : place.middle; }
    __device__ __forceinline__ int column() const { return NHWC ? place.middle : place.low; }
    __device__ __forceinline__ void next() { advance(place, step, low, middle); }
};
