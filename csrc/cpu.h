// What this processor can do, asked at run time: one binary serves every machine of its architecture.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace bdaudit {

// The instruction sets that kernels are written for, slowest first. A kernel may fall back to a lower one.
enum class Isa { portable, avx2, avx512 };

// The best one that this processor and its operating system support.
Isa best_isa();

// Feature names with whether they can be used; empty off x86.
std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace bdaudit
