#include "warp.h"

#include <algorithm>

#include "cuda.h"

namespace bdaudit {
namespace {

// Where one output pixel is read from, within a plane; a neighbour outside the image has no weight.
struct Place {
    std::int32_t p00, p01, p10, p11;
    Weights w;
};

__device__ Place place_of(const Warp& task, std::int32_t x, std::int32_t y) {
    const std::int32_t x0 = x >> position_bits, y0 = y >> position_bits;
    const auto w = static_cast<std::int32_t>(task.w), h = static_cast<std::int32_t>(task.h);
    if (x0 < -1 || y0 < -1 || x0 >= w || y0 >= h) return {};
    const bool left = x0 >= 0, right = x0 + 1 < w, top = y0 >= 0, bottom = y0 + 1 < h;
    Place place{y0 * w + x0, y0 * w + x0 + 1, (y0 + 1) * w + x0, (y0 + 1) * w + x0 + 1, weights_of(x, y)};
    if (!(top && left)) place.p00 = 0, place.w.w00 = 0;
    if (!(top && right)) place.p01 = 0, place.w.w01 = 0;
    if (!(bottom && left)) place.p10 = 0, place.w.w10 = 0;
    if (!(bottom && right)) place.p11 = 0, place.w.w11 = 0;
    return place;
}

__device__ std::uint8_t read(const std::uint8_t* plane, const Place& at) {
    return static_cast<std::uint8_t>(
        mix(at.w, __ldg(plane + at.p00), __ldg(plane + at.p01), __ldg(plane + at.p10), __ldg(plane + at.p11)));
}

template <int pixels>
struct Bytes {
    std::uint8_t byte[pixels];
};
template <>
struct __align__(4) Bytes<4> {
    std::uint8_t byte[4];
};

// Each thread owns `pixels` neighbouring pixels and walks over the images: where to read is worked out once. A product
// of jitter is rounded before anything is added to it, as on the CPU.
template <int pixels, bool jittered>
__global__ void __launch_bounds__(256) warp_kernel(const Warp task) {
    const std::int64_t size = task.h * task.w;
    const std::int64_t at = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * pixels;
    if (at >= size) return;

    std::int32_t x[pixels], y[pixels];
    Place place[pixels];
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
        x[i] = task.positions[2 * (at + i)];
        y[i] = task.positions[2 * (at + i) + 1];
        if constexpr (!jittered) place[i] = place_of(task, x[i], y[i]);
    }
    for (std::int64_t row = blockIdx.y; row < task.n; row += gridDim.y) {
        const bool chosen = !task.rows || task.rows[row];
        if constexpr (jittered) {
            const std::uint64_t key = key_of(task.seeds[row]);
            const std::int32_t right = static_cast<std::int32_t>(task.w - 1) << position_bits;
            const std::int32_t bottom = static_cast<std::int32_t>(task.h - 1) << position_bits;
#pragma unroll
            for (int i = 0; i < pixels; ++i) {
                const std::uint32_t random = random_of(key, static_cast<std::uint32_t>(at + i));
                const auto rx = static_cast<float>(2 * static_cast<std::int32_t>(random & 0xffff) - 65535);
                const auto ry = static_cast<float>(2 * static_cast<std::int32_t>(random >> 16) - 65535);
                const std::int32_t dx = __float2int_rn(__fmul_rn(rx, task.jitter_x / 65536));
                const std::int32_t dy = __float2int_rn(__fmul_rn(ry, task.jitter_y / 65536));
                const std::int32_t moved_x = min(max(x[i], -farthest), farthest) + dx;
                const std::int32_t moved_y = min(max(y[i], -farthest), farthest) + dy;
                place[i] = place_of(task, min(max(moved_x, 0), right), min(max(moved_y, 0), bottom));
            }
        }
        for (std::int64_t channel = 0; channel < task.c; ++channel) {
            const std::int64_t first = (row * task.c + channel) * size;
            Bytes<pixels> result;
#pragma unroll
            for (int i = 0; i < pixels; ++i) {
                result.byte[i] = chosen ? read(task.images + first, place[i]) : task.images[first + at + i];
            }
            *reinterpret_cast<Bytes<pixels>*>(task.out + first + at) = result;
        }
    }
}

template <int pixels>
void launch(const Warp& task, std::int64_t processors, cudaStream_t stream) {
    const std::int64_t groups = (task.h * task.w + pixels - 1) / pixels;
    const std::int64_t threads = std::min<std::int64_t>(256, (groups + 31) / 32 * 32);
    const std::int64_t columns = (groups + threads - 1) / threads;
    const std::int64_t wanted = std::max<std::int64_t>(1, processors * 4 * 2048 / (columns * threads));
    const dim3 grid(static_cast<unsigned>(columns),
                    static_cast<unsigned>(std::min({task.n, wanted, std::int64_t{65535}})));
    const auto kernel = task.seeds ? warp_kernel<pixels, true> : warp_kernel<pixels, false>;
    kernel<<<grid, static_cast<unsigned>(threads), 0, stream>>>(task);
}

}  // namespace

void warp_cuda(const Warp& task, int device, std::uintptr_t stream) {
    const std::int64_t size = task.h * task.w;
    if (task.n <= 0 || task.c * size <= 0) return;
    const OnDevice guard(device);
    const bool packets = size % 4 == 0 && aligned(task.out, 4);
    (packets ? launch<4> : launch<1>)(task, guard.processors(), reinterpret_cast<cudaStream_t>(stream));
    check(cudaGetLastError(), "launching warp");
}

}  // namespace bdaudit
