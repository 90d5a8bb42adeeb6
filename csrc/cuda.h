// What every CUDA launch shares.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bdaudit {

inline void check(cudaError_t error, const char* doing) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string("CUDA: ") + doing + " failed: " + cudaGetErrorString(error));
}

// Makes a device current, and the one before it again at the end.
class OnDevice {
public:
    explicit OnDevice(int device) : device_(device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        if (device == before_) return;
        check(cudaSetDevice(device), "choosing the device");
        moved_ = true;
    }
    ~OnDevice() {
        if (moved_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    std::int64_t processors() const {
        int count = 0;
        check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_), "asking for the device's size");
        return count;
    }

private:
    int device_;
    int before_ = 0;
    bool moved_ = false;
};

inline bool aligned(const void* at, std::uintptr_t to) { return reinterpret_cast<std::uintptr_t>(at) % to == 0; }

#if defined(__CUDACC__)
__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(std::uint16_t bfloat16) {
    return __uint_as_float(static_cast<unsigned>(bfloat16) << 16);
}
#endif

}  // namespace bdaudit
