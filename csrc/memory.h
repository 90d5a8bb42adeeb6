// Where the output goes.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bdaudit {

// Ask for huge pages under memory that is about to be written for the first time. A large new tensor is untouched
// memory, and faulting it in by 4 KiB pages can take several times as long as the kernel. Only a hint: it changes no
// contents, and where the system will not have it nothing happens.
inline void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::int64_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Whole huge pages only, so that no neighbouring allocation is touched by the advice.
    constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
    const auto at = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t first = (at + page - 1) / page * page;
    const std::uintptr_t last = (at + static_cast<std::uintptr_t>(size)) / page * page;
    if (first < last) static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#endif
}

}  // namespace bdaudit
