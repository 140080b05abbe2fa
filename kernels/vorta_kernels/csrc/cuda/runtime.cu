// What callers of the library need of the CUDA runtime in it.
#include "device.h"

// Of a function's result.
VORTA_EXPORT const char* vorta_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// The calling thread's device. The library has a CUDA runtime of its own, which does not know what others were told.
VORTA_EXPORT int vorta_set_device(int device) { return cudaSetDevice(device); }
