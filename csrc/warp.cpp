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

constexpr std::int64_t block = 32;  // images innermost: one AVX2 vector of pixels
constexpr std::int64_t line = 64;   // bytes of a cache line: what is read and written at a time of each image

// Where an output pixel is read from: the upper left of its four neighbours, as an index into the image with a border of
// one black pixel around it, and their weights.
struct Place {
    std::int64_t at;
    Weights w;
};

BDAUDIT_INLINE Place place_of(const Warp& task, std::int32_t x, std::int32_t y) {
    const std::int64_t x0 = x >> position_bits, y0 = y >> position_bits;
    // Nothing of it inside: all of it is the border's corner.
    if (x0 < -1 || y0 < -1 || x0 >= task.w || y0 >= task.h) return {0, {position_one, 0, 0, 0}};
    return {(y0 + 1) * (task.w + 2) + x0 + 1, weights_of(x, y)};
}

// ---- Many images, one field: a block of images goes innermost, so that each neighbour is one contiguous load.

// Where a pixel's neighbours begin, in bytes, and their weights, each as 64 high + low. Both fit a byte, so that two
// products of a pixel and a byte do for one of 16 bits. They come in pairs of a line, upper and lower, each written
// twice: 32 bits go to all of a vector in the load itself.
struct Tap {
    std::int64_t at;
    std::uint8_t high[2][4], low[2][4];
};

// All taps, and for each line of 64 pixels how many pixels of the image they look at: as soon as those are in the plane
// the line can be made, while they are still in the first-level cache.
struct Plan {
    std::vector<Tap> taps;
    std::vector<std::int64_t> reach;
};

Plan plan_of(const Warp& task) {
    const std::int64_t size = task.h * task.w, stride = task.w + 2;
    Plan plan{std::vector<Tap>(static_cast<std::size_t>(size)), {}};
    plan.reach.resize(static_cast<std::size_t>((size + line - 1) / line));
    for (std::size_t i = 0; i < plan.taps.size(); ++i) {
        const auto [at, w] = place_of(task, task.positions[2 * i], task.positions[2 * i + 1]);
        Tap& tap = plan.taps[i];
        tap.at = at * block;
        const std::int32_t weights[4] = {w.w00, w.w01, w.w10, w.w11};
        for (int k = 0; k < 4; ++k) {
            for (const int copy : {k % 2, k % 2 + 2}) {
                tap.high[k / 2][copy] = static_cast<std::uint8_t>(weights[k] >> 6);
                tap.low[k / 2][copy] = static_cast<std::uint8_t>(weights[k] & 63);
            }
        }
        // The lower right neighbour, counted without the border.
        const std::int64_t last = std::min(at / stride, task.h - 1) * task.w + std::min(at % stride, task.w - 1);
        std::int64_t& reach = plan.reach[i / line];
        reach = std::max(reach, last + 1);
    }
    return plan;
}

// `out` (count, block) from `plane`, a line of which has `stride` bytes.
void mix_portable(const Tap* taps, std::int64_t count, const std::uint8_t* plane, std::int64_t stride,
                  std::uint8_t* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        const Tap& tap = taps[i];
        std::int32_t weight[4];
        for (int k = 0; k < 4; ++k) weight[k] = 64 * tap.high[k / 2][k % 2] + tap.low[k / 2][k % 2];
        const Weights w{weight[0], weight[1], weight[2], weight[3]};
        const std::uint8_t* __restrict__ top = plane + tap.at;
        const std::uint8_t* __restrict__ bottom = top + stride;
        std::uint8_t* __restrict__ to = out + i * block;
        for (std::int64_t j = 0; j < block; ++j) {
            to[j] = static_cast<std::uint8_t>(mix(w, top[j], top[j + block], bottom[j], bottom[j + block]));
        }
    }
}

// Where 32 rows of bytes begin: anywhere, or one after the other.
template <class Byte>
struct Listed {
    Byte* const* rows;
    std::int64_t shift;
    BDAUDIT_INLINE Byte* operator[](std::int64_t i) const { return rows[i] + shift; }
};
template <class Byte>
struct Strided {
    Byte* first;
    std::int64_t stride;
    BDAUDIT_INLINE Byte* operator[](std::int64_t i) const { return first + i * stride; }
};
using Images = Listed<const std::uint8_t>;
using Pixels = Listed<std::uint8_t>;
using Tile = Strided<const std::uint8_t>;
using Lines = Strided<std::uint8_t>;

// to[j][i] = from[i][j] for a tile of 32 x 32 bytes.
template <class From, class To>
void transpose_portable(From from, To to) {
    for (std::int64_t i = 0; i < block; ++i) {
        for (std::int64_t j = 0; j < block; ++j) to[j][i] = from[i][j];
    }
}

// A line of 64 bytes of each of 32 images to where it belongs.
void put_lines_portable(const std::uint8_t* lines, Pixels to) {
    for (std::int64_t i = 0; i < block; ++i) std::memcpy(to[i], lines + i * line, line);
}

void finish_portable() {}

// ---- One image at a time: few images, or a field of its own for each.

struct Single {
    std::vector<std::int32_t> at;       // where a pixel's neighbours begin
    std::vector<std::int16_t> weights;  // w00, w01, w10, w11 of each pixel
    std::vector<std::uint8_t> plane;    // one channel with its border
};

BDAUDIT_INLINE std::int32_t within(std::int32_t position) { return std::min(std::max(position, -farthest), farthest); }

BDAUDIT_INLINE void jitter_plain(const Warp& task, std::int64_t seed, Single& own) {
    const std::uint64_t key = key_of(seed);
    const auto right = static_cast<std::int32_t>(task.w - 1) << position_bits;
    const auto bottom = static_cast<std::int32_t>(task.h - 1) << position_bits;
    const auto stride = static_cast<std::int32_t>(task.w + 2);
    const float scale_x = task.jitter_x / 65536, scale_y = task.jitter_y / 65536;
    const std::int64_t size = task.h * task.w;
    const std::int32_t* __restrict__ positions = task.positions;
    std::int32_t* __restrict__ at = own.at.data();
    std::int16_t* __restrict__ weights = own.weights.data();
    for (std::int64_t i = 0; i < size; ++i) {
        const std::uint32_t random = random_of(key, static_cast<std::uint32_t>(i));
        // Odd integers from -65535 to 65535: even about zero. A product and a rounding, the same on every machine.
        const auto dx = static_cast<float>(2 * static_cast<std::int32_t>(random & 0xffff) - 65535) * scale_x;
        const auto dy = static_cast<float>(2 * static_cast<std::int32_t>(random >> 16) - 65535) * scale_y;
        const auto moved_x = within(positions[2 * i]) + static_cast<std::int32_t>(__builtin_rintf(dx));
        const auto moved_y = within(positions[2 * i + 1]) + static_cast<std::int32_t>(__builtin_rintf(dy));
        const std::int32_t x = std::min(std::max(moved_x, 0), right);
        const std::int32_t y = std::min(std::max(moved_y, 0), bottom);
        const Weights w = weights_of(x, y);
        at[i] = ((y >> position_bits) + 1) * stride + (x >> position_bits) + 1;
        weights[4 * i] = static_cast<std::int16_t>(w.w00);
        weights[4 * i + 1] = static_cast<std::int16_t>(w.w01);
        weights[4 * i + 2] = static_cast<std::int16_t>(w.w10);
        weights[4 * i + 3] = static_cast<std::int16_t>(w.w11);
    }
}

BDAUDIT_INLINE void gather_plain(const Single& own, std::int64_t begin, std::int64_t end, std::int64_t stride,
                                 std::uint8_t* out) {
    for (std::int64_t i = begin; i < end; ++i) {
        const std::uint8_t* p = own.plane.data() + own.at[static_cast<std::size_t>(i)];
        const std::int16_t* w = own.weights.data() + 4 * i;
        out[i] = static_cast<std::uint8_t>(mix({w[0], w[1], w[2], w[3]}, p[0], p[1], p[stride], p[stride + 1]));
    }
}

void jitter_portable(const Warp& task, std::int64_t seed, Single& own) { jitter_plain(task, seed, own); }

void gather_portable(const Single& own, std::int64_t size, std::int64_t stride, std::uint8_t* out) {
    gather_plain(own, 0, size, stride, out);
}

#if defined(__x86_64__)

const __m256i* vectors(const void* at) { return static_cast<const __m256i*>(at); }

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
BDAUDIT_AVX2 void mix_avx2(const Tap* taps, std::int64_t count, const std::uint8_t* plane, std::int64_t stride,
                           std::uint8_t* out) {
    const __m256i bias = _mm256_set1_epi8(-128);
    for (const Tap* tap = taps; tap != taps + count; ++tap, out += block) {
        const __m256i weights[4] = {everywhere(tap->high[0]), everywhere(tap->high[1]), everywhere(tap->low[0]),
                                    everywhere(tap->low[1])};
        const std::uint8_t* top = plane + tap->at;
        const std::uint8_t* bottom = top + stride;
        const __m256i p00 = _mm256_load_si256(vectors(top)), p01 = _mm256_load_si256(vectors(top + block));
        const __m256i p10 = _mm256_load_si256(vectors(bottom)), p11 = _mm256_load_si256(vectors(bottom + block));
        const __m256i a = mix16(_mm256_unpacklo_epi8(p00, p01), _mm256_unpacklo_epi8(p10, p11), weights);
        const __m256i b = mix16(_mm256_unpackhi_epi8(p00, p01), _mm256_unpackhi_epi8(p10, p11), weights);
        const __m256i mixed = _mm256_xor_si256(_mm256_packs_epi16(a, b), bias);
        _mm256_store_si256(reinterpret_cast<__m256i*>(out), mixed);
    }
}

// Four rounds of interleaving the first half of 16 rows with the second: each one moves one bit of the row's index into
// the column's, and after four they have changed places. Within 128-bit lanes, so a lane is 16 columns. `bias` is taken
// from, or added to, every byte.
template <char bias, class From, class To>
BDAUDIT_AVX2 void transpose_avx2(From from, To to) {
    // Both lanes of a vector hold the same 16 columns, of rows r and r + 16.
    for (std::int64_t half = 0; half < 2; ++half) {
        __m256i a[16], b[16];
        for (int row = 0; row < 16; ++row) {
            const auto* low = reinterpret_cast<const __m128i*>(from[row] + half * 16);
            const auto* high = reinterpret_cast<const __m128i*>(from[row + 16] + half * 16);
            a[row] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
            if constexpr (bias != 0) a[row] = _mm256_xor_si256(a[row], _mm256_set1_epi8(bias));
        }
        const auto interleave = [](const __m256i* x, __m256i* y) BDAUDIT_AVX2 __attribute__((always_inline)) {
            for (int i = 0; i < 8; ++i) {
                y[2 * i] = _mm256_unpacklo_epi8(x[i], x[i + 8]);
                y[2 * i + 1] = _mm256_unpackhi_epi8(x[i], x[i + 8]);
            }
        };
        interleave(a, b);
        interleave(b, a);
        interleave(a, b);
        interleave(b, a);
        for (int column = 0; column < 16; ++column) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[half * 16 + column]), a[column]);
        }
    }
}

// Written around the cache: reading each line before it is overwritten would cost as much again.
BDAUDIT_AVX2 void stream_lines(const std::uint8_t* lines, Pixels to) {
    for (std::int64_t i = 0; i < block; ++i) {
        auto* at = reinterpret_cast<__m256i*>(to[i]);
        const __m256i low = _mm256_load_si256(vectors(lines + i * line));
        const __m256i high = _mm256_load_si256(vectors(lines + i * line + 32));
        _mm256_stream_si256(at, low);
        _mm256_stream_si256(at + 1, high);
    }
}

// Streaming stores are not ordered with others: a fence makes them visible before the caller goes on.
void finish_stream() { _mm_sfence(); }

BDAUDIT_AVX2 void jitter_avx2(const Warp& task, std::int64_t seed, Single& own) { jitter_plain(task, seed, own); }

BDAUDIT_AVX2 inline __m256i mix8(__m256i top, __m256i bottom, __m256i w_top, __m256i w_bottom) {
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(top, w_top), _mm256_madd_epi16(bottom, w_bottom));
    return _mm256_srli_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(position_one / 2)), position_bits);
}

// A gather reads four bytes where two are wanted: the plane ends with two to spare.
BDAUDIT_AVX2 void gather_avx2(const Single& own, std::int64_t size, std::int64_t stride, std::uint8_t* out) {
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
    void (*mix)(const Tap*, std::int64_t count, const std::uint8_t* plane, std::int64_t stride, std::uint8_t* out);
    std::uint8_t black;  // in a plane
    void (*into_plane)(Images from, Pixels to);
    void (*out_of_tile)(Tile from, Lines to);
    void (*put_lines)(const std::uint8_t* lines, Pixels to);
    void (*finish)();
    void (*jitter)(const Warp&, std::int64_t seed, Single& own);
    void (*gather)(const Single&, std::int64_t size, std::int64_t stride, std::uint8_t* out);
};

Kernels choose([[maybe_unused]] Isa isa, [[maybe_unused]] bool stream) {
#if defined(__x86_64__)
    if (std::min(isa, best_isa()) >= Isa::avx2) {
        return {mix_avx2,
                0x80,
                transpose_avx2<-128, Images, Pixels>,
                transpose_avx2<0, Tile, Lines>,
                stream ? stream_lines : put_lines_portable,
                stream ? finish_stream : finish_portable,
                jitter_avx2,
                gather_avx2};
    }
#endif
    return {mix_portable, 0, transpose_portable<Images, Pixels>, transpose_portable<Tile, Lines>, put_lines_portable,
            finish_portable, jitter_portable, gather_portable};
}

// One thread's part of the work and the memory that it needs for it.
class Worker {
public:
    Worker(const Warp& task, const Kernels& kernels, const Plan& plan)
        : task_(task), kernels_(kernels), plan_(plan), size_(task.h * task.w), stride_(task.w + 2) {}

    void run(std::int64_t begin, std::int64_t end) {
        // Below this many images at once, one at a time is faster.
        constexpr std::int64_t few = 4;
        std::int64_t chosen[block];
        std::int64_t count = 0;
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t first = row * task_.c * size_;
            if (task_.rows && !task_.rows[row]) {
                std::memcpy(task_.out + first, task_.images + first, static_cast<std::size_t>(task_.c * size_));
            } else if (task_.seeds) {
                prepare_single();
                kernels_.jitter(task_, task_.seeds[row], own_);
                warp_single(first);
            } else {
                chosen[count++] = first;
            }
            if (count == block || (count > 0 && row + 1 == end)) {
                if (plan_.taps.empty() || count < few) {
                    for (std::int64_t i = 0; i < count; ++i) warp_alone(chosen[i]);
                } else {
                    warp_block(chosen, count);
                }
                count = 0;
            }
        }
        kernels_.finish();
    }

private:
    void warp_block(const std::int64_t* first, std::int64_t count) {
        prepare_block();
        // A block that is not full repeats its first image; what comes of that is not kept.
        for (std::int64_t i = 0; i < block; ++i) {
            from_[i] = task_.images + first[i < count ? i : 0];
            to_[i] = task_.out + first[i < count ? i : 0];
        }
        for (std::int64_t channel = 0; channel < task_.c; ++channel) {
            std::int64_t taken = 0;
            for (std::int64_t at = 0; at < size_; at += line) {
                for (; taken < plan_.reach[static_cast<std::size_t>(at / line)]; taken += line) {
                    take(channel, taken, std::min(line, size_ - taken));
                }
                put(channel, at, std::min(line, size_ - at), count);
            }
        }
    }

    // Pixels [at, at + many) of a channel of each image become pixels of the plane.
    void take(std::int64_t channel, std::int64_t at, std::int64_t many) {
        const std::int64_t shift = channel * size_ + at;
        // A block reads from more places than the processor follows by itself.
        for (std::int64_t i = 0; i < block; ++i) __builtin_prefetch(from_[i] + shift + 2 * line);
        std::uint8_t* const* to = pixels_.data() + at;
        if (many == line) {
            kernels_.into_plane({from_, shift}, {to, 0});
            kernels_.into_plane({from_, shift + block}, {to + block, 0});
            return;
        }
        for (std::int64_t i = 0; i < block; ++i) {
            std::memcpy(lines_[i], from_[i] + shift, static_cast<std::size_t>(many));
        }
        kernels_.into_plane({line_rows_, 0}, {to, 0});
        if (many > block) kernels_.into_plane({line_rows_, block}, {to + block, 0});
    }

    // Pixels [at, at + many) of a channel of the result go back into the images.
    void put(std::int64_t channel, std::int64_t at, std::int64_t many, std::int64_t count) {
        const std::int64_t shift = channel * size_ + at;
        kernels_.mix(plan_.taps.data() + at, many, plane_, stride_ * block, tile_[0]);
        kernels_.out_of_tile({tile_[0], block}, {lines_[0], line});
        kernels_.out_of_tile({tile_[block], block}, {lines_[0] + block, line});
        if (many == line && count == block) return kernels_.put_lines(lines_[0], {to_, shift});
        for (std::int64_t i = 0; i < count; ++i) {
            std::memcpy(to_[i] + shift, lines_[i], static_cast<std::size_t>(many));
        }
    }

    void prepare_block() {
        if (plane_) return;
        const std::int64_t pixels = stride_ * (task_.h + 2);
        // One pixel more, where what the last line has past the image's end may go.
        plane_memory_.assign(static_cast<std::size_t>((pixels + 1) * block + line), kernels_.black);
        plane_ = plane_memory_.data() + (-reinterpret_cast<std::intptr_t>(plane_memory_.data()) & (line - 1));
        pixels_.assign(static_cast<std::size_t>((size_ + line - 1) / line * line), plane_ + pixels * block);
        for (std::int64_t i = 0; i < size_; ++i) {
            pixels_[static_cast<std::size_t>(i)] = plane_ + ((i / task_.w + 1) * stride_ + i % task_.w + 1) * block;
        }
        for (std::int64_t i = 0; i < block; ++i) line_rows_[i] = lines_[i];
    }

    void prepare_single() {
        if (!own_.plane.empty()) return;
        own_.at.resize(static_cast<std::size_t>(size_));
        own_.weights.resize(static_cast<std::size_t>(4 * size_));
        // A gather reads two bytes past the last neighbour.
        own_.plane.resize(static_cast<std::size_t>(stride_ * (task_.h + 2) + 2));
    }

    // One image with the field of all.
    void warp_alone(std::int64_t first) {
        if (own_.plane.empty()) {
            prepare_single();
            for (std::int64_t i = 0; i < size_; ++i) {
                const Place place = place_of(task_, task_.positions[2 * i], task_.positions[2 * i + 1]);
                const auto at = static_cast<std::size_t>(i);
                own_.at[at] = static_cast<std::int32_t>(place.at);
                const std::int32_t weights[4] = {place.w.w00, place.w.w01, place.w.w10, place.w.w11};
                std::copy_n(weights, 4, own_.weights.begin() + static_cast<std::ptrdiff_t>(4 * at));
            }
        }
        warp_single(first);
    }

    // One image with the field that `own_` holds.
    void warp_single(std::int64_t first) {
        for (std::int64_t channel = 0; channel < task_.c; ++channel) {
            const std::int64_t shift = first + channel * size_;
            for (std::int64_t y = 0; y < task_.h; ++y) {
                std::memcpy(own_.plane.data() + (y + 1) * stride_ + 1, task_.images + shift + y * task_.w,
                            static_cast<std::size_t>(task_.w));
            }
            kernels_.gather(own_, size_, stride_, task_.out + shift);
        }
    }

    const Warp& task_;
    const Kernels& kernels_;
    const Plan& plan_;
    const std::int64_t size_, stride_;
    Single own_;
    std::vector<std::uint8_t> plane_memory_;
    std::uint8_t* plane_ = nullptr;       // a channel of the block's images with a black border, images innermost
    std::vector<std::uint8_t*> pixels_;  // where each pixel of the images lies in the plane
    const std::uint8_t* from_[block] = {};
    std::uint8_t* to_[block] = {};
    alignas(64) std::uint8_t tile_[line][block] = {};   // pixels of the result, images innermost
    alignas(64) std::uint8_t lines_[block][line] = {};  // the same as lines of each image
    const std::uint8_t* line_rows_[block] = {};
};

}  // namespace

void warp_cpu(const Warp& task, int threads, Isa isa) {
    // Waking a thread costs about as much as this many pixels.
    constexpr std::int64_t pixels_per_thread = 65536;
    // Images larger than this are warped one at a time: a block of them would not fit any cache.
    constexpr std::int64_t largest_block = std::int64_t{16} << 20;
    // Lines can be streamed where every plane begins with one; it pays where the output would not stay in the cache.
    constexpr std::int64_t stream_from = std::int64_t{8} << 20;
    const std::int64_t size = task.c * task.h * task.w;
    if (task.n <= 0 || size <= 0) return;
    const bool large = task.n * size >= stream_from;
    const bool whole = reinterpret_cast<std::uintptr_t>(task.out) % line == 0 && task.h * task.w % line == 0;
    if (large) prefer_huge_pages(task.out, task.n * size);
    const Kernels kernels = choose(isa, large && whole);
    const bool blocks = !task.seeds && task.n > 1 && task.h * task.w * block <= largest_block;
    const Plan plan = blocks ? plan_of(task) : Plan{};
    const std::int64_t grain = std::max<std::int64_t>(1, pixels_per_thread / size);
    // Whole blocks where there are enough of them for all threads, else an equal share for each.
    const std::int64_t share = (task.n + std::max(threads, 1) - 1) / std::max(threads, 1);
    parallel_for(task.n, blocks ? std::max(grain, std::min(block, share)) : grain, threads,
                 [&](std::int64_t begin, std::int64_t end, int) { Worker(task, kernels, plan).run(begin, end); });
}

}  // namespace bdaudit
