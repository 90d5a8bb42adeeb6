#include "warp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "memory.h"
#include "simd.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bdaudit {
namespace {

// ---- One field for all images: a block of images goes innermost, so that each neighbour is one contiguous load.

// How to make one output pixel: where its four neighbours begin, in bytes from the plane's beginning, and their weights,
// each as 64 high + low. Both fit a byte, so that two products of a pixel and a byte do for one of 16 bits. They come in
// pairs of a line, upper and lower, each written twice: 32 bits go to all of a vector in the load itself.
struct Tap {
    std::uint32_t at[4];
    std::uint8_t high[2][4], low[2][4];
};

constexpr std::int64_t block = 32;  // images innermost: one AVX2 vector of pixels
constexpr std::int64_t line = 64;   // bytes of a cache line: what is read and written at a time of each image

// All taps, and for each line of 64 pixels how many pixels of the image they look at: as soon as those are in the plane
// the line can be made, while they are still in the first-level cache.
struct Plan {
    std::vector<Tap> taps;
    std::vector<std::int64_t> reach;
};

// A neighbour outside the image is pixel h * w, which is black in every image.
Plan plan_of(const Warp& task) {
    const std::int64_t size = task.h * task.w;
    Plan plan{std::vector<Tap>(static_cast<std::size_t>(size)), {}};
    plan.reach.resize(static_cast<std::size_t>((size + line - 1) / line));
    const auto pixel = [&](std::int64_t y, std::int64_t x) {
        const bool inside = y >= 0 && y < task.h && x >= 0 && x < task.w;
        return static_cast<std::uint32_t>((inside ? y * task.w + x : task.h * task.w) * block);
    };
    for (std::size_t i = 0; i < plan.taps.size(); ++i) {
        const std::int32_t x = task.positions[2 * i], y = task.positions[2 * i + 1];
        const std::int32_t x0 = x >> position_bits, y0 = y >> position_bits;
        const Weights w = weights_of(x, y);
        Tap& tap = plan.taps[i];
        tap = {{pixel(y0, x0), pixel(y0, x0 + 1), pixel(y0 + 1, x0), pixel(y0 + 1, x0 + 1)}, {}, {}};
        const std::int32_t weights[4] = {w.w00, w.w01, w.w10, w.w11};
        for (int k = 0; k < 4; ++k) {
            for (const int copy : {k % 2, k % 2 + 2}) {
                tap.high[k / 2][copy] = static_cast<std::uint8_t>(weights[k] >> 6);
                tap.low[k / 2][copy] = static_cast<std::uint8_t>(weights[k] & 63);
            }
            std::int64_t& reach = plan.reach[i / line];
            if (tap.at[k] < size * block) reach = std::max<std::int64_t>(reach, tap.at[k] / block + 1);
        }
    }
    return plan;
}

// `out` (count, block) from `plane` (h * w + 1, block).
BDAUDIT_INLINE void mix_plain(const Tap* taps, std::int64_t count, const std::uint8_t* plane, std::uint8_t* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        const Tap& tap = taps[i];
        std::int32_t weight[4];
        for (int k = 0; k < 4; ++k) weight[k] = 64 * tap.high[k / 2][k % 2] + tap.low[k / 2][k % 2];
        const Weights w{weight[0], weight[1], weight[2], weight[3]};
        const std::uint8_t* __restrict__ p00 = plane + tap.at[0];
        const std::uint8_t* __restrict__ p01 = plane + tap.at[1];
        const std::uint8_t* __restrict__ p10 = plane + tap.at[2];
        const std::uint8_t* __restrict__ p11 = plane + tap.at[3];
        std::uint8_t* __restrict__ to = out + i * block;
        for (std::int64_t j = 0; j < block; ++j) to[j] = static_cast<std::uint8_t>(mix(w, p00[j], p01[j], p10[j], p11[j]));
    }
}

void mix_portable(const Tap* taps, std::int64_t count, const std::uint8_t* plane, std::uint8_t* out) {
    mix_plain(taps, count, plane, out);
}

// to[j][to_at + i] = from[i][from_at + j] for a tile of 32 x 32 bytes.
void transpose_portable(const std::uint8_t* const* from, std::int64_t from_at, std::uint8_t* const* to,
                        std::int64_t to_at) {
    for (std::int64_t i = 0; i < block; ++i) {
        for (std::int64_t j = 0; j < block; ++j) to[j][to_at + i] = from[i][from_at + j];
    }
}

// ---- Jitter: every image has positions of its own.

struct Jittered {
    std::vector<std::int32_t> at;  // where p00 lies in a plane with one more row and column
    std::vector<std::int16_t> weights;  // w00, w01, w10, w11 for each pixel
    std::vector<std::uint8_t> plane;
};

BDAUDIT_INLINE void jitter_plain(const Warp& task, std::int64_t seed, std::int32_t* at, std::int16_t* weights) {
    const std::uint64_t key = key_of(seed);
    const std::int64_t size = task.h * task.w;
    const auto right = static_cast<std::int32_t>(task.w - 1) << position_bits;
    const auto bottom = static_cast<std::int32_t>(task.h - 1) << position_bits;
    const auto stride = static_cast<std::int32_t>(task.w + 1);
    const float scale_x = task.jitter_x / 65536, scale_y = task.jitter_y / 65536;
    const std::int32_t* positions = task.positions;
    for (std::int64_t i = 0; i < size; ++i) {
        const std::uint32_t random = random_of(key, static_cast<std::uint32_t>(i));
        // Odd integers from -65535 to 65535: even about zero. A product and a rounding, the same on every machine.
        const auto dx = static_cast<float>(2 * static_cast<std::int32_t>(random & 0xffff) - 65535) * scale_x;
        const auto dy = static_cast<float>(2 * static_cast<std::int32_t>(random >> 16) - 65535) * scale_y;
        const auto moved_x = positions[2 * i] + static_cast<std::int32_t>(__builtin_rintf(dx));
        const auto moved_y = positions[2 * i + 1] + static_cast<std::int32_t>(__builtin_rintf(dy));
        const std::int32_t x = std::min(std::max(moved_x, 0), right);
        const std::int32_t y = std::min(std::max(moved_y, 0), bottom);
        const Weights w = weights_of(x, y);
        at[i] = (y >> position_bits) * stride + (x >> position_bits);
        weights[4 * i] = static_cast<std::int16_t>(w.w00);
        weights[4 * i + 1] = static_cast<std::int16_t>(w.w01);
        weights[4 * i + 2] = static_cast<std::int16_t>(w.w10);
        weights[4 * i + 3] = static_cast<std::int16_t>(w.w11);
    }
}

BDAUDIT_INLINE void gather_plain(const Jittered& own, std::int64_t begin, std::int64_t end, std::int64_t stride,
                                 std::uint8_t* out) {
    for (std::int64_t i = begin; i < end; ++i) {
        const std::uint8_t* p = own.plane.data() + own.at[static_cast<std::size_t>(i)];
        const std::int16_t* w = own.weights.data() + 4 * i;
        out[i] = static_cast<std::uint8_t>(mix({w[0], w[1], w[2], w[3]}, p[0], p[1], p[stride], p[stride + 1]));
    }
}

void jitter_portable(const Warp& task, std::int64_t seed, std::int32_t* at, std::int16_t* weights) {
    jitter_plain(task, seed, at, weights);
}

// Lines of 64 bytes, one for each of 32 images, to where they belong.
void put_lines_portable(const std::uint8_t* lines, std::uint8_t* const* to, std::int64_t to_at) {
    for (std::int64_t i = 0; i < block; ++i) std::memcpy(to[i] + to_at, lines + i * line, line);
}

void finish_portable() {}

void gather_portable(const Jittered& own, std::int64_t size, std::int64_t stride, std::uint8_t* out) {
    gather_plain(own, 0, size, stride, out);
}

#if defined(__x86_64__)

const __m256i* vectors(const void* at) { return static_cast<const __m256i*>(at); }

BDAUDIT_AVX2 inline __m256i mix8(__m256i top, __m256i bottom, __m256i w_top, __m256i w_bottom) {
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(top, w_top), _mm256_madd_epi16(bottom, w_bottom));
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(position_one / 2)), position_bits);
}

BDAUDIT_AVX2 inline __m256i everywhere(const std::uint8_t* bytes) {
    std::int32_t four;
    std::memcpy(&four, bytes, sizeof four);
    return _mm256_set1_epi32(four);
}

// (64 high + low + 2^12) / 2^13 of pixels less 128, which is that of the pixels less 128 since weights add up to 2^13. No
// sum leaves 16 bits: the high parts add up to 128 at most, the low ones, a multiple of 64, to 192.
BDAUDIT_AVX2 inline __m256i mix16(__m256i top, __m256i bottom, const __m256i* weights) {
    const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(weights[0], top), _mm256_maddubs_epi16(weights[1], bottom));
    const __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(weights[2], top), _mm256_maddubs_epi16(weights[3], bottom));
    // A product with 2^8, halved, rounded and shifted by 15 as this instruction does, is a rounded division by 2^7.
    return _mm256_mulhrs_epi16(_mm256_add_epi16(high, _mm256_srai_epi16(low, 6)), _mm256_set1_epi16(256));
}

// The plane's pixels are less 128, signed bytes. Unpacking and packing both work within 128-bit lanes, so the pixels
// come out in order.
BDAUDIT_AVX2 void mix_avx2(const Tap* taps, std::int64_t count, const std::uint8_t* plane, std::uint8_t* out) {
    const __m256i bias = _mm256_set1_epi8(-128);
    for (std::int64_t i = 0; i < count; ++i) {
        const Tap& tap = taps[i];
        const __m256i weights[4] = {everywhere(tap.high[0]), everywhere(tap.high[1]), everywhere(tap.low[0]),
                                    everywhere(tap.low[1])};
        const __m256i p00 = _mm256_load_si256(vectors(plane + tap.at[0]));
        const __m256i p01 = _mm256_load_si256(vectors(plane + tap.at[1]));
        const __m256i p10 = _mm256_load_si256(vectors(plane + tap.at[2]));
        const __m256i p11 = _mm256_load_si256(vectors(plane + tap.at[3]));
        const __m256i a = mix16(_mm256_unpacklo_epi8(p00, p01), _mm256_unpacklo_epi8(p10, p11), weights);
        const __m256i b = mix16(_mm256_unpackhi_epi8(p00, p01), _mm256_unpackhi_epi8(p10, p11), weights);
        const __m256i mixed = _mm256_xor_si256(_mm256_packs_epi16(a, b), bias);
        _mm256_store_si256(reinterpret_cast<__m256i*>(out + i * block), mixed);
    }
}

// Five rounds of interleaving the first half of the rows with the second: each one moves one bit of the row's index
// into the column's, and after five they have changed places. Within 128-bit lanes, so a lane is 16 columns. `bias` is
// taken from, or added to, every byte.
template <char bias>
BDAUDIT_AVX2 void transpose_avx2(const std::uint8_t* const* from, std::int64_t from_at, std::uint8_t* const* to,
                                 std::int64_t to_at) {
    // 16 rows at a time, both lanes of a vector holding the same 16 columns of rows r and r + 16.
    for (std::int64_t half = 0; half < 2; ++half) {
        __m256i a[16], b[16];
        for (int row = 0; row < 16; ++row) {
            const auto* low = reinterpret_cast<const __m128i*>(from[row] + from_at + half * 16);
            const auto* high = reinterpret_cast<const __m128i*>(from[row + 16] + from_at + half * 16);
            a[row] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
            if constexpr (bias != 0) a[row] = _mm256_xor_si256(a[row], _mm256_set1_epi8(bias));
        }
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 8; ++i) {
            a[2 * i] = _mm256_unpacklo_epi8(b[i], b[i + 8]);
            a[2 * i + 1] = _mm256_unpackhi_epi8(b[i], b[i + 8]);
        }
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 8; ++i) {
            a[2 * i] = _mm256_unpacklo_epi8(b[i], b[i + 8]);
            a[2 * i + 1] = _mm256_unpackhi_epi8(b[i], b[i + 8]);
        }
        for (int column = 0; column < 16; ++column) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[half * 16 + column] + to_at), a[column]);
        }
    }
}

// Written around the cache: reading each line before it is overwritten would cost as much again.
BDAUDIT_AVX2 void stream_lines(const std::uint8_t* lines, std::uint8_t* const* to, std::int64_t to_at) {
    for (std::int64_t i = 0; i < block; ++i) {
        auto* at = reinterpret_cast<__m256i*>(to[i] + to_at);
        const __m256i low = _mm256_load_si256(vectors(lines + i * line));
        const __m256i high = _mm256_load_si256(vectors(lines + i * line + 32));
        _mm256_stream_si256(at, low);
        _mm256_stream_si256(at + 1, high);
    }
}

// Streaming stores are not ordered with others: a fence makes them visible before the caller goes on.
void finish_stream() { _mm_sfence(); }

BDAUDIT_AVX2 void jitter_avx2(const Warp& task, std::int64_t seed, std::int32_t* at, std::int16_t* weights) {
    jitter_plain(task, seed, at, weights);
}

// A gather reads four bytes where two are wanted: the plane ends with two to spare.
BDAUDIT_AVX2 void gather_avx2(const Jittered& own, std::int64_t size, std::int64_t stride, std::uint8_t* out) {
    // Bytes 0 and 1 of each 32 bits, widened to a pair of 16 bits.
    const __m256i widen = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1, -1, 4,
                                           -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const auto* plane = reinterpret_cast<const int*>(own.plane.data());
    const auto* below = reinterpret_cast<const int*>(own.plane.data() + stride);
    std::int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const __m256i at = _mm256_loadu_si256(vectors(own.at.data() + i));
        const __m256i top = _mm256_shuffle_epi8(_mm256_i32gather_epi32(plane, at, 1), widen);
        const __m256i bottom = _mm256_shuffle_epi8(_mm256_i32gather_epi32(below, at, 1), widen);
        // Four weights a pixel: the pairs of the upper row are the even 32-bit words, those of the lower row the odd.
        const __m256 first = _mm256_castsi256_ps(_mm256_loadu_si256(vectors(own.weights.data() + 4 * i)));
        const __m256 second = _mm256_castsi256_ps(_mm256_loadu_si256(vectors(own.weights.data() + 4 * i + 16)));
        const __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
        const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd));
        const __m256i w_top = _mm256_permute4x64_epi64(even, 0xd8), w_bottom = _mm256_permute4x64_epi64(odd, 0xd8);
        const __m256i bytes = _mm256_shuffle_epi8(mix8(top, bottom, w_top, w_bottom), pick);
        const std::int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
        std::memcpy(out + i, &low, sizeof low);
        std::memcpy(out + i + 4, &high, sizeof high);
    }
    gather_plain(own, i, size, stride, out);
}

#endif

struct Kernels {
    void (*mix)(const Tap*, std::int64_t count, const std::uint8_t* plane, std::uint8_t* out);
    std::uint8_t black;  // in a plane
    void (*into_plane)(const std::uint8_t* const* from, std::int64_t from_at, std::uint8_t* const* to, std::int64_t to_at);
    void (*transpose)(const std::uint8_t* const* from, std::int64_t from_at, std::uint8_t* const* to, std::int64_t to_at);
    void (*put_lines)(const std::uint8_t* lines, std::uint8_t* const* to, std::int64_t to_at);
    void (*finish)();
    void (*jitter)(const Warp&, std::int64_t seed, std::int32_t* at, std::int16_t* weights);
    void (*gather)(const Jittered&, std::int64_t size, std::int64_t stride, std::uint8_t* out);
};

Kernels choose([[maybe_unused]] Isa isa, [[maybe_unused]] bool stream) {
#if defined(__x86_64__)
    if (std::min(isa, best_isa()) >= Isa::avx2) {
        return {mix_avx2, 0x80, transpose_avx2<-128>, transpose_avx2<0>, stream ? stream_lines : put_lines_portable,
                stream ? finish_stream : finish_portable, jitter_avx2, gather_avx2};
    }
#endif
    return {mix_portable, 0, transpose_portable, transpose_portable, put_lines_portable, finish_portable, jitter_portable, gather_portable};
}

// One thread's part of the work and the memory that it needs for it.
class Worker {
public:
    Worker(const Warp& task, const Kernels& kernels, const Plan& plan)
        : task_(task), kernels_(kernels), plan_(plan), size_(task.h * task.w) {
        for (std::int64_t i = 0; i < line; ++i) tile_rows_[i] = tile_[i];
        for (std::int64_t i = 0; i < block; ++i) line_rows_[i] = lines_[i];
    }

    void run(std::int64_t begin, std::int64_t end) {
        std::int64_t chosen[block];
        std::int64_t count = 0;
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t first = row * task_.c * size_;
            if (task_.rows && !task_.rows[row]) {
                std::memcpy(task_.out + first, task_.images + first, static_cast<std::size_t>(task_.c * size_));
            } else if (task_.seeds) {
                warp_jittered(first, task_.seeds[row]);
            } else {
                chosen[count++] = first;
            }
            if (count == block || (count > 0 && row + 1 == end)) {
                warp_block(chosen, count);
                count = 0;
            }
        }
        kernels_.finish();
    }

private:
    void warp_block(const std::int64_t* first, std::int64_t count) {
        // Whole lines, and one pixel more for what lies outside.
        const std::int64_t pixels = (size_ + line - 1) / line * line + 1;
        if (plane_.empty()) plane_.resize(static_cast<std::size_t>(pixels * block + align));
        std::uint8_t* plane = aligned(plane_.data());
        for (std::int64_t i = 0; i < block; ++i) in_plane_[i] = plane + i * block;
        std::memset(plane + size_ * block, kernels_.black, block);
        for (std::int64_t channel = 0; channel < task_.c; ++channel) {
            const std::int64_t shift = channel * size_;
            for (std::int64_t i = 0; i < block; ++i) {
                // A block that is not full repeats its first image; what comes of that is not kept.
                const std::int64_t at = first[i < count ? i : 0] + shift;
                from_[i] = task_.images + at;
                to_[i] = task_.out + at;
            }
            std::int64_t taken = 0;
            for (std::int64_t at = 0; at < size_; at += line) {
                for (; taken < plan_.reach[static_cast<std::size_t>(at / line)]; taken += line) {
                    take(taken, std::min(line, size_ - taken));
                    // The last line reaches past the image, to the pixel that stands for what lies outside.
                    if (taken + line > size_) std::memset(plane + size_ * block, kernels_.black, block);
                }
                put(at, std::min(line, size_ - at), count, plane);
            }
        }
    }

    // Pixels [at, at + many) of each image become rows of the plane.
    void take(std::int64_t at, std::int64_t many) {
        // A block reads from more places than the processor follows by itself.
        for (std::int64_t i = 0; i < block; ++i) __builtin_prefetch(from_[i] + at + 2 * line);
        if (many == line) {
            kernels_.into_plane(from_, at, in_plane_, at * block);
            kernels_.into_plane(from_, at + block, in_plane_, (at + block) * block);
            return;
        }
        for (std::int64_t i = 0; i < block; ++i) std::memcpy(lines_[i], from_[i] + at, static_cast<std::size_t>(many));
        kernels_.into_plane(line_rows_, 0, in_plane_, at * block);
        if (many > block) kernels_.into_plane(line_rows_, block, in_plane_, (at + block) * block);
    }

    // Pixels [at, at + many) of the result go back into the images.
    void put(std::int64_t at, std::int64_t many, std::int64_t count, const std::uint8_t* plane) {
        kernels_.mix(plan_.taps.data() + at, many, plane, tile_[0]);
        kernels_.transpose(tile_rows_, 0, line_rows_, 0);
        kernels_.transpose(tile_rows_ + block, 0, line_rows_, block);
        if (many == line && count == block) return kernels_.put_lines(lines_[0], to_, at);
        for (std::int64_t i = 0; i < count; ++i) std::memcpy(to_[i] + at, lines_[i], static_cast<std::size_t>(many));
    }

    void warp_jittered(std::int64_t first, std::int64_t seed) {
        const std::int64_t stride = task_.w + 1;
        if (own_.plane.empty()) {
            own_.at.resize(static_cast<std::size_t>(size_));
            own_.weights.resize(static_cast<std::size_t>(4 * size_));
            // One more row and column, which only weights of 0 reach, and two bytes that a gather reads past the end.
            own_.plane.resize(static_cast<std::size_t>(stride * (task_.h + 1) + 2));
        }
        kernels_.jitter(task_, seed, own_.at.data(), own_.weights.data());
        for (std::int64_t channel = 0; channel < task_.c; ++channel) {
            const std::int64_t shift = first + channel * size_;
            for (std::int64_t y = 0; y < task_.h; ++y) {
                std::memcpy(own_.plane.data() + y * stride, task_.images + shift + y * task_.w,
                            static_cast<std::size_t>(task_.w));
            }
            kernels_.gather(own_, size_, stride, task_.out + shift);
        }
    }

    static constexpr std::int64_t align = 64;

    static std::uint8_t* aligned(std::uint8_t* at) {
        return at + (-reinterpret_cast<std::intptr_t>(at) & (align - 1));
    }

    const Warp& task_;
    const Kernels& kernels_;
    const Plan& plan_;
    const std::int64_t size_;
    std::vector<std::uint8_t> plane_;
    Jittered own_;
    const std::uint8_t* from_[block] = {};
    std::uint8_t* to_[block] = {};
    std::uint8_t* in_plane_[block] = {};
    alignas(64) std::uint8_t tile_[line][block] = {};   // pixels of the result, images innermost
    alignas(64) std::uint8_t lines_[block][line] = {};  // the same as lines of each image
    std::uint8_t* tile_rows_[line] = {};
    std::uint8_t* line_rows_[block] = {};
};

}  // namespace

void warp_cpu(const Warp& task, int threads, Isa isa) {
    // Waking a thread costs about as much as this many pixels.
    constexpr std::int64_t pixels_per_thread = 65536;
    const std::int64_t size = task.c * task.h * task.w;
    if (task.n <= 0 || size <= 0) return;
    // Lines can be streamed where every plane begins with one; it pays where the output would not stay in the cache.
    constexpr std::int64_t stream_from = std::int64_t{8} << 20;
    const bool large = task.n * size >= stream_from;
    const bool whole = reinterpret_cast<std::uintptr_t>(task.out) % line == 0 && task.h * task.w % line == 0;
    if (large) prefer_huge_pages(task.out, task.n * size);
    const Kernels kernels = choose(isa, large && whole);
    const Plan plan = task.seeds ? Plan{} : plan_of(task);
    const std::int64_t grain = std::max<std::int64_t>(1, pixels_per_thread / size);
    parallel_for(task.n, task.seeds ? grain : std::max(grain, block), threads,
                 [&](std::int64_t begin, std::int64_t end, int) { Worker(task, kernels, plan).run(begin, end); });
}

}  // namespace bdaudit
