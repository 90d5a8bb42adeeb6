// What the kernels' tests share: random buffers of exactly the size asked for, so that a sanitizer sees any step outside
// them, and checks that name what failed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cpu.h"

namespace testing {

inline std::mt19937 engine(20240229);
inline int failures = 0;

inline int below(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(engine); }

template <class T>
std::vector<T> random(std::int64_t size, int low, int high) {
    std::vector<T> values(static_cast<std::size_t>(size));
    for (T& value : values) value = static_cast<T>(low + below(high - low + 1));
    return values;
}

inline std::vector<float> normal(std::int64_t size, float scale) {
    std::normal_distribution<float> draw(0, scale);
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = draw(engine);
    return values;
}

inline void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
}

inline std::string with(std::initializer_list<std::pair<const char*, std::int64_t>> values) {
    std::string text;
    for (const auto& [name, value] : values) text += std::string(" ") + name + "=" + std::to_string(value);
    return text;
}

// Every instruction set; one that this machine lacks falls back to the best that it has.
inline constexpr bdaudit::Isa every_isa[] = {bdaudit::Isa::portable, bdaudit::Isa::avx2, bdaudit::Isa::avx512};
inline constexpr int thread_counts[] = {1, 2, 5};

inline int finish() {
    std::printf("best instruction set %d: %s\n", static_cast<int>(bdaudit::best_isa()), failures ? "FAILED" : "ok");
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace testing
