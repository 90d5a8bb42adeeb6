// Blend one pattern into a batch of images, in integers, so that every backend gives the same bytes.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace bdaudit {

// out = x + round((p - x) * w / 2^15), the product rounded half up: what pmulhrsw computes. The Q15 weight of 1 is
// 32767, and since |p - x| <= 255 it gives exactly p; a weight of 0 gives exactly x. A negative weight counts as 0.
struct Blend {
    const std::uint8_t* images;   // (n, c, h, w)
    const std::uint8_t* pattern;  // (c, h, w)
    const std::int16_t* weight;   // (c, h, w)
    const std::int64_t* slots;    // (n): the image's own mask among `blocks`; negative: leave it as it is.
                                  // Null: every image is blended, with the mask of its own index.
    const std::uint8_t* blocks;   // (masks, bh, bw): 0 leaves the pixels of that cell as they are. Null: no masks.
    std::uint8_t* out;            // (n, c, h, w), apart from all inputs
    std::int64_t n, c, h, w;
    std::int64_t masks, bh, bw;  // pixel (y, x) lies in cell (y * bh / h, x * bw / w)
};

void blend_cpu(const Blend& task, int threads, Isa isa = best_isa());

// Launches on `stream` (a cudaStream_t) of `device` and returns at once; throws std::runtime_error if it cannot.
void blend_cuda(const Blend& task, int device, std::uintptr_t stream);

}  // namespace bdaudit
