#include "blend.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "memory.h"
#include "simd.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bdaudit {
namespace {

// A run of pixels. The mask has one byte a pixel, 0x00 (leave) or 0xff (blend); null blends all. Passed by value: the
// compiler then knows that no store to `out` changes it, and keeps its addresses in registers.
struct Span {
    const std::uint8_t* x;
    const std::uint8_t* p;
    const std::int16_t* w;
    const std::uint8_t* mask;
    std::uint8_t* out;
    std::int64_t size;
};

// How a span is blended and copied; the stream_ and copy_stream variants write around the cache.
struct Kernels {
    void (*blend)(Span);
    void (*blend_masked)(Span);
    void (*copy)(const std::uint8_t* from, std::uint8_t* to, std::int64_t size);
    void (*finish)();
};

template <bool masked>
void blend_portable(Span s) {
    // Told that the output is apart from all else, the compiler can use what vectors the baseline has.
    const std::uint8_t* __restrict__ x = s.x;
    const std::uint8_t* __restrict__ p = s.p;
    const std::int16_t* __restrict__ w = s.w;
    [[maybe_unused]] const std::uint8_t* __restrict__ mask = s.mask;
    std::uint8_t* __restrict__ out = s.out;
    const std::int64_t size = s.size;
    for (std::int64_t i = 0; i < size; ++i) {
        int weight = std::max<int>(w[i], 0);
        if constexpr (masked) weight &= static_cast<std::int8_t>(mask[i]);
        out[i] = static_cast<std::uint8_t>(x[i] + (((p[i] - x[i]) * weight + 16384) >> 15));
    }
}

void copy_plain(const std::uint8_t* from, std::uint8_t* to, std::int64_t size) {
    std::memcpy(to, from, static_cast<std::size_t>(size));
}

void finish_plain() {}

#if defined(__x86_64__)

// A streaming store evicts its cache line, so only whole lines are streamed: what lies before the first one and after
// the last is stored as usual.
constexpr std::int64_t line = 64;

std::int64_t bytes_to_line(const void* at, std::int64_t size) {
    return std::min<std::int64_t>(-reinterpret_cast<std::intptr_t>(at) & (line - 1), size);
}

Span part_of(Span s, std::int64_t begin, std::int64_t end) {
    return {s.x + begin, s.p + begin, s.w + begin, s.mask ? s.mask + begin : nullptr, s.out + begin, end - begin};
}

template <bool masked>
BDAUDIT_AVX2 inline __m256i blend16(Span s, std::int64_t i) {
    const auto load = [](const void* at) { return static_cast<const __m128i*>(at); };
    const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(load(s.x + i)));
    const __m256i p = _mm256_cvtepu8_epi16(_mm_loadu_si128(load(s.p + i)));
    __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s.w + i));
    w = _mm256_max_epi16(w, _mm256_setzero_si256());
    if constexpr (masked) w = _mm256_and_si256(w, _mm256_cvtepi8_epi16(_mm_loadu_si128(load(s.mask + i))));
    return _mm256_add_epi16(x, _mm256_mulhrs_epi16(_mm256_sub_epi16(p, x), w));
}

template <bool masked>
BDAUDIT_AVX2 inline __m256i blend32(Span s, std::int64_t i) {
    // The pack works within 128-bit lanes; the permutation puts the quarters back in order.
    const __m256i packed = _mm256_packus_epi16(blend16<masked>(s, i), blend16<masked>(s, i + 16));
    return _mm256_permute4x64_epi64(packed, 0xd8);
}

template <bool masked>
BDAUDIT_AVX2 void blend_avx2(Span s) {
    if (s.size < 32) return blend_portable<masked>(s);
    const auto at = [&](std::int64_t i) { return reinterpret_cast<__m256i*>(s.out + i); };
    std::int64_t i = 0;
    for (; i + 32 <= s.size; i += 32) _mm256_storeu_si256(at(i), blend32<masked>(s, i));
    // The last vector may overlap the one before: the same bytes are written twice, faster than a scalar loop.
    if (i < s.size) _mm256_storeu_si256(at(s.size - 32), blend32<masked>(s, s.size - 32));
}

template <bool masked>
BDAUDIT_AVX2 void stream_avx2(Span s) {
    std::int64_t i = bytes_to_line(s.out, s.size);
    if (i != 0) blend_avx2<masked>(part_of(s, 0, i));
    for (; i + line <= s.size; i += line) {
        const auto to = reinterpret_cast<__m256i*>(s.out + i);
        _mm256_stream_si256(to, blend32<masked>(s, i));
        _mm256_stream_si256(to + 1, blend32<masked>(s, i + 32));
    }
    if (i < s.size) blend_avx2<masked>(part_of(s, i, s.size));
}

BDAUDIT_AVX2 void copy_stream(const std::uint8_t* from, std::uint8_t* to, std::int64_t size) {
    std::int64_t i = bytes_to_line(to, size);
    copy_plain(from, to, i);
    for (; i + line <= size; i += line) {
        for (const std::int64_t j : {i, i + 32}) {
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j));
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j), bytes);
        }
    }
    copy_plain(from + i, to + i, size - i);
}

// Streaming stores are not ordered with others: a fence makes them visible before the thread is joined.
void finish_stream() { _mm_sfence(); }

// The maskz forms with all lanes on are the plain instructions; gcc 12 warns about its own header for the plain forms.
template <bool masked>
BDAUDIT_AVX512 inline __m256i blend32_avx512(Span s, std::int64_t i) {
    const auto load = [](const void* at) { return static_cast<const __m256i*>(at); };
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256(load(s.x + i)));
    const __m512i p = _mm512_cvtepu8_epi16(_mm256_loadu_si256(load(s.p + i)));
    __m512i w = _mm512_max_epi16(_mm512_loadu_si512(s.w + i), _mm512_setzero_si512());
    if constexpr (masked) w = _mm512_and_si512(w, _mm512_cvtepi8_epi16(_mm256_loadu_si256(load(s.mask + i))));
    const __m512i sum = _mm512_add_epi16(x, _mm512_mulhrs_epi16(_mm512_sub_epi16(p, x), w));
    return _mm512_maskz_cvtepi16_epi8(0xffffffff, sum);
}

template <bool masked>
BDAUDIT_AVX512 inline __m512i blend64(Span s, std::int64_t i) {
    const __m512i low = _mm512_castsi256_si512(blend32_avx512<masked>(s, i));
    return _mm512_maskz_inserti64x4(0xff, low, blend32_avx512<masked>(s, i + 32), 1);
}

template <bool masked>
BDAUDIT_AVX512 void blend_avx512(Span s) {
    if (s.size < 64) return blend_avx2<masked>(s);
    std::int64_t i = 0;
    for (; i + 64 <= s.size; i += 64) _mm512_storeu_si512(s.out + i, blend64<masked>(s, i));
    if (i < s.size) _mm512_storeu_si512(s.out + s.size - 64, blend64<masked>(s, s.size - 64));
}

template <bool masked>
BDAUDIT_AVX512 void stream_avx512(Span s) {
    std::int64_t i = bytes_to_line(s.out, s.size);
    if (i != 0) blend_avx2<masked>(part_of(s, 0, i));
    for (; i + line <= s.size; i += line) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(s.out + i), blend64<masked>(s, i));
    }
    if (i < s.size) blend_avx2<masked>(part_of(s, i, s.size));
}

#endif

Kernels choose(Isa isa, [[maybe_unused]] bool stream) {
    isa = std::min(isa, best_isa());
#if defined(__x86_64__)
    if (isa == Isa::avx512 && stream) return {stream_avx512<false>, stream_avx512<true>, copy_stream, finish_stream};
    if (isa == Isa::avx512) return {blend_avx512<false>, blend_avx512<true>, copy_plain, finish_plain};
    if (isa == Isa::avx2 && stream) return {stream_avx2<false>, stream_avx2<true>, copy_stream, finish_stream};
    if (isa == Isa::avx2) return {blend_avx2<false>, blend_avx2<true>, copy_plain, finish_plain};
#endif
    return {blend_portable<false>, blend_portable<true>, copy_plain, finish_plain};
}

// The mask of image `row` among task.blocks (its own index where there are none); negative if it is left as it is.
// A slot without a mask leaves the image alone too: a wrong index from outside must never become a wild read.
std::int64_t slot_of(const Blend& task, std::int64_t row) {
    const std::int64_t slot = task.slots ? task.slots[row] : row;
    return task.blocks && slot >= task.masks ? -1 : slot;
}

// The pixels' masks from the cells' masks: (bh, bw) to (h, w).
void expand(const Blend& task, const std::uint8_t* cells, std::uint8_t* mask) {
    for (std::int64_t y = 0, drawn = -1; y < task.h; ++y) {
        const std::int64_t row = y * task.bh / task.h;
        std::uint8_t* line = mask + y * task.w;
        if (row == drawn) {
            std::memcpy(line, line - task.w, static_cast<std::size_t>(task.w));
            continue;
        }
        for (std::int64_t column = 0, x = 0; column < task.bw; ++column) {
            // The first pixel of the next cell: the smallest x with x * bw / w > column.
            const std::int64_t end = ((column + 1) * task.w + task.bw - 1) / task.bw;
            const std::uint8_t value = cells[row * task.bw + column] ? 0xff : 0x00;
            for (; x < end; ++x) line[x] = value;
        }
        drawn = row;
    }
}

void blend_blocks(const Blend& task, const Kernels& kernels, std::uint8_t* mask, std::int64_t begin, std::int64_t end) {
    const std::int64_t plane = task.h * task.w;
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t slot = slot_of(task, row);
        const std::int64_t first = row * task.c * plane;
        if (slot < 0) {
            kernels.copy(task.images + first, task.out + first, task.c * plane);
            continue;
        }
        expand(task, task.blocks + slot * task.bh * task.bw, mask);
        for (std::int64_t at = 0; at < task.c * plane; at += plane) {
            const std::int64_t pixel = first + at;
            kernels.blend_masked(
                {task.images + pixel, task.pattern + at, task.weight + at, mask, task.out + pixel, plane});
        }
    }
}

void blend_rows(const Blend& task, const Kernels& kernels, std::int64_t begin, std::int64_t end) {
    // A tile of the pattern and its weights, 24 KiB, stays in the first-level cache while all rows pass by.
    constexpr std::int64_t tile = 8192;
    const std::int64_t size = task.c * task.h * task.w;
    for (std::int64_t at = 0; at < size; at += tile) {
        const std::int64_t part = std::min(tile, size - at);
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t first = row * size + at;
            if (slot_of(task, row) < 0) {
                kernels.copy(task.images + first, task.out + first, part);
            } else {
                kernels.blend(
                    {task.images + first, task.pattern + at, task.weight + at, nullptr, task.out + first, part});
            }
        }
    }
}

}  // namespace

void blend_cpu(const Blend& task, int threads, Isa isa) {
    // An output larger than this would not stay in the cache until it is read: writing around the cache then saves
    // reading each line before it is overwritten.
    constexpr std::int64_t stream_from = std::int64_t{8} << 20;
    // Starting a thread costs about as much as blending this many bytes.
    constexpr std::int64_t bytes_per_thread = std::int64_t{256} << 10;

    const std::int64_t size = task.c * task.h * task.w;
    if (task.n <= 0 || size <= 0) return;
    const bool stream = task.n * size >= stream_from;
    if (stream) prefer_huge_pages(task.out, task.n * size);
    const Kernels kernels = choose(isa, stream);
    const std::int64_t grain = std::max<std::int64_t>(1, bytes_per_thread / size);
    const std::int64_t plane = task.blocks ? task.h * task.w : 0;
    const auto masks = std::make_unique<std::uint8_t[]>(static_cast<std::size_t>(plane * std::max(threads, 1)));
    parallel_for(task.n, grain, threads, [&](std::int64_t begin, std::int64_t end, int part) {
        if (task.blocks) {
            blend_blocks(task, kernels, masks.get() + plane * part, begin, end);
        } else {
            blend_rows(task, kernels, begin, end);
        }
        kernels.finish();
    });
}

}  // namespace bdaudit
