// Warp images along one field of positions, in integers, so that every backend gives the same bytes.
#pragma once

#include <cstdint>

#include "cpu.h"

#if defined(__CUDACC__)
#define BDAUDIT_BOTH __host__ __device__ inline
#else
#define BDAUDIT_BOTH inline
#endif

namespace bdaudit {

// out[y, x] is read from the image at positions[y, x], between its four neighbours: bilinear, zero outside.
struct Warp {
    const std::uint8_t* images;     // (n, c, h, w)
    const std::int32_t* positions;  // (h, w, 2): x, then y, in 2^-13 pixels
    const std::int64_t* seeds;      // (n): the seed of an image's own jitter. Null: no jitter.
    const std::uint8_t* rows;       // (n): 0 leaves the image as it is. Null: every image is warped.
    std::uint8_t* out;              // (n, c, h, w), apart from all inputs
    std::int64_t n, c, h, w;
    // With seeds, each position moves by up to this many 2^-13 pixels, evenly, and then back into the image.
    float jitter_x, jitter_y;
};

void warp_cpu(const Warp& task, int threads, Isa isa = best_isa());
void warp_cuda(const Warp& task, int device, std::uintptr_t stream);

// Positions further out than this are as good as there; jitter of at most half of it then never leaves 32 bits.
inline constexpr std::int32_t farthest = 1 << 27;

inline constexpr int position_bits = 13;
inline constexpr std::int32_t position_one = 1 << position_bits;

// The neighbours' weights, which add up to 2^13 exactly; [row][column].
struct Weights {
    std::int32_t w00, w01, w10, w11;
};

BDAUDIT_BOTH Weights weights_of(std::int32_t x, std::int32_t y) {
    const std::int32_t fx = x & (position_one - 1), fy = y & (position_one - 1);
    const std::int32_t w11 = (fx * fy + position_one / 2) >> position_bits;
    return {position_one - fx - fy + w11, fx - w11, fy - w11, w11};
}

BDAUDIT_BOTH std::int32_t mix(const Weights& w, std::int32_t p00, std::int32_t p01, std::int32_t p10,
                              std::int32_t p11) {
    return (p00 * w.w00 + p01 * w.w01 + p10 * w.w10 + p11 * w.w11 + position_one / 2) >> position_bits;
}

// Jitter comes from counters, so that any thread can have any pixel's: splitmix64 makes an image's key of its seed, and
// two rounds of a 32-bit mixer (both well-known, without state) make 32 bits of key and pixel, 16 for each direction.
BDAUDIT_BOTH std::uint64_t key_of(std::int64_t seed) {
    std::uint64_t z = static_cast<std::uint64_t>(seed) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

BDAUDIT_BOTH std::uint32_t mixed(std::uint32_t z) {
    z = (z ^ (z >> 16)) * 0x7feb352du;
    z = (z ^ (z >> 15)) * 0x846ca68bu;
    return z ^ (z >> 16);
}

BDAUDIT_BOTH std::uint32_t random_of(std::uint64_t key, std::uint32_t pixel) {
    const auto low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
    return mixed(mixed(pixel ^ low) + high);
}

}  // namespace bdaudit
