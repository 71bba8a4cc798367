// Where elements of x, w and y lie.
// NHWC = 0: x[N,C,H,W] w[K,C/G,R,S] y[N,K,P,Q]; NHWC = 1: x[N,H,W,C] w[K,R,S,C/G] y[N,P,Q,K].
#pragma once
#include "conv.cuh"
#include "device.cuh"

#ifndef NHWC
#define NHWC 0
#endif

// Steps of one tensor in elements: from image to image (or filter to filter), channel to channel, row to row, column
// to column. The last two of NCHW and the last one of NHWC fit 32 bits by far; images of many channels do not.
struct Steps {
    long long image, channel, row, column;
};

__device__ __forceinline__ Steps steps_of(int channels, int height, int width) {
    Steps t;
#if NHWC
    t.channel = 1;
    t.column = channels;
    t.row = (long long)width * channels;
#else
    t.column = 1;
    t.row = width;
    t.channel = (long long)height * width;
#endif
    t.image = (long long)height * width * channels;
    return t;
}

__device__ __forceinline__ Steps steps_x(const Conv& f) { return steps_of(f.c, f.h, f.w); }
__device__ __forceinline__ Steps steps_w(const Conv& f) { return steps_of(f.c / f.groups, f.r, f.s); }
__device__ __forceinline__ Steps steps_y(const Conv& f) { return steps_of(f.k, f.p, f.q); }

__device__ __forceinline__ long long at(const Steps& t, int image, int channel, int row, int column) {
    return image * t.image + channel * t.channel + row * t.row + column * t.column;
}

// The place of element `i` of a tensor of this layout.
struct Place {
    int image, channel, row, column;
};

__device__ __forceinline__ Place place_of(long long i, int channels, int height, int width) {
    Place a;
#if NHWC
    a.channel = (int)(i % channels);
    i /= channels;
    a.column = (int)(i % width);
    i /= width;
    a.row = (int)(i % height);
    a.image = (int)(i / height);
#else
    a.column = (int)(i % width);
    i /= width;
    a.row = (int)(i % height);
    i /= height;
    a.channel = (int)(i % channels);
    a.image = (int)(i / channels);
#endif
    return a;
}
