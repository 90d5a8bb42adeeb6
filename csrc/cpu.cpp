#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bdaudit {

#if defined(__x86_64__)

namespace {

struct Leaf7 {
    unsigned edx = 0;   // sub-leaf 0
    unsigned eax1 = 0;  // sub-leaf 1
};

Leaf7 leaf7() {
    Leaf7 leaf;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) leaf.edx = edx;
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) leaf.eax1 = eax;
    return leaf;
}

// Whether the operating system saves the AMX tile registers (XCR0 bits 17 and 18).
bool tiles_enabled() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 27))) return false;
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & (3u << 17)) == (3u << 17);
}

}  // namespace

Isa best_isa() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::portable;
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512f") ? Isa::avx512 : Isa::avx2;
}

std::vector<std::pair<std::string, bool>> cpu_features() {
    const Leaf7 leaf = leaf7();
    const bool avx512f = __builtin_cpu_supports("avx512f");
    return {
        {"avx2", static_cast<bool>(__builtin_cpu_supports("avx2"))},
        {"avx512f", avx512f},
        {"avx512bw", static_cast<bool>(__builtin_cpu_supports("avx512bw"))},
        {"avx512_bf16", avx512f && (leaf.eax1 & (1u << 5))},
        {"amx_bf16", (leaf.edx & (1u << 22)) && tiles_enabled()},
    };
}

#else

Isa best_isa() { return Isa::portable; }

std::vector<std::pair<std::string, bool>> cpu_features() { return {}; }

#endif

}  // namespace bdaudit
