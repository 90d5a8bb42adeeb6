// A parallel loop without a runtime library of its own: nothing to ship in the wheel, nothing to clash with torch's
// OpenMP.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bdaudit {

// Run job(context, part) for every part in [0, parts), part 0 on the caller's thread and each other one on a thread
// of its own. The threads are kept, asleep, for the next call: waking one costs a fifth of starting one. A forked child
// (a DataLoader worker) starts its own. Where the system has no more threads, the caller does what is left.
void run_parts(int parts, void (*job)(const void* context, int part), const void* context);

// Run work(begin, end, part) over [0, count), split over at most `threads` threads, the caller's being one of them;
// `part`, below `threads`, is no other thread's at the time. A thread takes at least `grain` items, so small work never
// pays for waking one. `work` must not throw.
template <class Work>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Work& work) {
    const std::int64_t most = std::max<std::int64_t>(1, count / std::max<std::int64_t>(1, grain));
    const int parts = static_cast<int>(std::clamp<std::int64_t>(threads, 1, most));
    if (parts == 1) return work(0, count, 0);
    const auto part_of = [&](int part) {
        const auto bound = [&](int at) { return count / parts * at + std::min<std::int64_t>(at, count % parts); };
        work(bound(part), bound(part + 1), part);
    };
    run_parts(parts, [](const void* context, int part) { (*static_cast<decltype(&part_of)>(context))(part); }, &part_of);
}

}  // namespace bdaudit
