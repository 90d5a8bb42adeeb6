// A parallel loop on the threads that torch already has, without linking their library: nothing to ship in the wheel.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bdaudit {

// Run job(context, part) once for every part in [0, parts), side by side where there are threads for it.
//
// The process's OpenMP runs them where one is loaded, which is the case wherever torch is: its threads spin for a while
// after each of torch's own loops, and a second pool would fight them for the same cores. Elsewhere (the C++ tests) and
// in a forked child threads are started and joined.
void run_parts(int parts, void (*job)(const void* context, int part), const void* context);

// Whether they are OpenMP's.
bool threads_are_openmp();

// Run work(begin, end, part) over [0, count), split over at most `threads` threads, the caller's being one of them;
// `part`, below `threads`, is no other thread's at the time. A thread takes at least `grain` items, so small work never
// pays for waking one. What `work` throws is thrown again when all parts have ended.
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
