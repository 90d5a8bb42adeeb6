// Vectors that every compiler and processor has: GNU vector types, as wide as the instruction set they are compiled
// for. A kernel is written once over a width, and compiled once for each set that it is dispatched to.
#pragma once

#include <cstdint>
#include <cstring>

#define BDAUDIT_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define BDAUDIT_AVX2 __attribute__((target("avx2,fma")))
#define BDAUDIT_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw")))
#endif

namespace bdaudit {

// float, int32 and uint32 vectors of `lanes` values; a comparison of Floats gives Ints, -1 where it holds.
template <int lanes>
struct Vector;
template <>
struct Vector<4> {
    typedef float Floats __attribute__((vector_size(16)));
    typedef std::int32_t Ints __attribute__((vector_size(16)));
    typedef std::uint32_t Words __attribute__((vector_size(16)));
};
template <>
struct Vector<8> {
    typedef float Floats __attribute__((vector_size(32)));
    typedef std::int32_t Ints __attribute__((vector_size(32)));
    typedef std::uint32_t Words __attribute__((vector_size(32)));
};
template <>
struct Vector<16> {
    typedef float Floats __attribute__((vector_size(64)));
    typedef std::int32_t Ints __attribute__((vector_size(64)));
    typedef std::uint32_t Words __attribute__((vector_size(64)));
};

template <class V, class T>
BDAUDIT_INLINE V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V, class T>
BDAUDIT_INLINE void store(T* to, const V& value) {
    std::memcpy(to, &value, sizeof value);
}

template <class To, class From>
BDAUDIT_INLINE To bits(const From& value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

// bfloat16 is the upper half of a float.
BDAUDIT_INLINE float to_float(float value) { return value; }
BDAUDIT_INLINE float to_float(std::uint16_t bfloat16) { return bits<float>(std::uint32_t{bfloat16} << 16); }

}  // namespace bdaudit
