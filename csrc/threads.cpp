#include "threads.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace bdaudit {
namespace {

// A thread that sleeps until it is given a part of a job.
class Worker {
public:
    Worker() { std::thread([this] { live(); }).detach(); }

    void give(void (*job)(const void*, int), const void* context, int part) {
        job_ = job;
        context_ = context;
        part_ = part;
        busy_.store(1, std::memory_order_release);
        busy_.notify_one();
    }

    void wait() const { busy_.wait(1, std::memory_order_acquire); }

private:
    [[noreturn]] void live() {
        for (;;) {
            busy_.wait(0, std::memory_order_acquire);
            job_(context_, part_);
            busy_.store(0, std::memory_order_release);
            busy_.notify_one();
        }
    }

    std::atomic<int> busy_{0};  // not bool: an int is what the system itself can wait for
    void (*job_)(const void*, int) = nullptr;
    const void* context_ = nullptr;
    int part_ = 0;
};

struct Team {
    std::mutex in_use;
    std::vector<std::unique_ptr<Worker>> workers;
};

// Never destroyed: its threads sleep until the process ends, and a forked child, which has the team but not its
// threads, leaves it behind and makes another.
std::atomic<Team*> current{nullptr};

void forget_after_fork() { current.store(nullptr); }

Team* team() {
#if defined(__unix__) || defined(__APPLE__)
    [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
#endif
    Team* found = current.load();
    if (found) return found;
    auto made = std::make_unique<Team>();
    return current.compare_exchange_strong(found, made.get()) ? made.release() : found;
}

}  // namespace

void run_parts(int parts, void (*job)(const void*, int), const void* context) {
    Team& all = *team();
    // Two callers at once: the second works alone rather than wait for the first.
    const std::unique_lock alone(all.in_use, std::try_to_lock);
    int helped = 1;
    if (alone) {
        try {
            all.workers.reserve(static_cast<std::size_t>(parts - 1));
            while (static_cast<int>(all.workers.size()) < parts - 1) all.workers.push_back(std::make_unique<Worker>());
        } catch (const std::system_error&) {
            // The system is out of threads: those that there are will do.
        }
        helped = std::min(parts, static_cast<int>(all.workers.size()) + 1);
    }
    for (int part = 1; part < helped; ++part) all.workers[static_cast<std::size_t>(part - 1)]->give(job, context, part);
    job(context, 0);
    for (int part = helped; part < parts; ++part) job(context, part);
    for (int part = 1; part < helped; ++part) all.workers[static_cast<std::size_t>(part - 1)]->wait();
}

}  // namespace bdaudit
