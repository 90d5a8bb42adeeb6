#include "blend.h"

#include <algorithm>

#include "cuda.h"

namespace bdaudit {
namespace {

// Bytes that move between memory and registers in one instruction.
template <int bytes>
struct Packet;
template <>
struct Packet<1> {
    using type = unsigned char;
};
template <>
struct Packet<16> {
    using type = uint4;
};

// Each thread owns `pixels` neighbouring pixels of the pattern and walks over the rows, so the pattern and the weights
// are read once and only images and outputs move. With everything doubled so that the result lies in one byte,
//     x + (((p - x) * w + 2^14) >> 15)  =  byte 2 of  x * 2 (2^15 - w) + 2 (p * w + 2^14)
// takes one multiply-add a pixel; both factors below are those of x and the constant.
template <int pixels, bool masked>
__global__ void __launch_bounds__(256) blend_kernel(const Blend task) {
    using Bytes = typename Packet<pixels>::type;
    const std::int64_t size = task.c * task.h * task.w;
    const std::int64_t at = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * pixels;
    if (at >= size) return;

    unsigned scale[pixels], offset[pixels], cell[pixels];
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
        const unsigned w = max(int{task.weight[at + i]}, 0);
        scale[i] = 2 * (32768 - w);
        offset[i] = 2 * (task.pattern[at + i] * w + 16384);
        if constexpr (masked) {
            const std::int64_t pixel = (at + i) % (task.h * task.w);
            cell[i] = pixel / task.w * task.bh / task.h * task.bw + pixel % task.w * task.bw / task.w;
        }
    }

#pragma unroll 2
    for (std::int64_t row = blockIdx.y; row < task.n; row += gridDim.y) {
        const std::int64_t slot = task.slots ? task.slots[row] : row;
        union {
            Bytes packet;
            unsigned char byte[pixels];
        } x;
        x.packet = __ldcs(reinterpret_cast<const Bytes*>(task.images + row * size + at));
        if (slot >= 0 && !(masked && slot >= task.masks)) {
            [[maybe_unused]] const std::uint8_t* cells = task.blocks + slot * task.bh * task.bw;
#pragma unroll
            for (int i = 0; i < pixels; ++i) {
                const unsigned blended = (x.byte[i] * scale[i] + offset[i]) >> 16;
                if constexpr (masked) {
                    if (cells[cell[i]]) x.byte[i] = blended;
                } else {
                    x.byte[i] = blended;
                }
            }
        }
        __stcs(reinterpret_cast<Bytes*>(task.out + row * size + at), x.packet);
    }
}

template <int pixels>
void launch(const Blend& task, std::int64_t processors, cudaStream_t stream) {
    const std::int64_t packets = (task.c * task.h * task.w + pixels - 1) / pixels;
    const std::int64_t threads = std::min<std::int64_t>(256, (packets + 31) / 32 * 32);
    const std::int64_t columns = (packets + threads - 1) / threads;
    // Enough blocks to fill the device a few times over, and no more: each one reads the pattern again.
    const std::int64_t wanted = std::max<std::int64_t>(1, processors * 4 * 2048 / (columns * threads));
    const std::int64_t rows = std::min({task.n, wanted, std::int64_t{65535}});
    const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
    const auto kernel = task.blocks ? blend_kernel<pixels, true> : blend_kernel<pixels, false>;
    kernel<<<grid, static_cast<unsigned>(threads), 0, stream>>>(task);
}

}  // namespace

void blend_cuda(const Blend& task, int device, std::uintptr_t stream) {
    const std::int64_t size = task.c * task.h * task.w;
    if (task.n <= 0 || size <= 0) return;
    const OnDevice guard(device);
    const bool packets = size % 16 == 0 && aligned(task.images, 16) && aligned(task.out, 16);
    (packets ? launch<16> : launch<1>)(task, guard.processors(), reinterpret_cast<cudaStream_t>(stream));
    check(cudaGetLastError(), "launching blend");
}

}  // namespace bdaudit
