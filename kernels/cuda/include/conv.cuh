// The convolution that a kernel computes, as one struct argument. Filled in by convbench/algorithms/_cuda.py.
#pragma once

struct Conv {
    int n, c, h, w;           // input: images, channels of all groups, height, width
    int k, r, s;              // filter: outputs of all groups, height, width
    int p, q;                 // output: height, width
    int stride_h, stride_w;
    int pad_h, pad_w;         // top and left
    int dilation_h, dilation_w;
    int groups;
};
