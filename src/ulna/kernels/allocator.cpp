// Memory of torch's tensors on a CPU, from malloc.
//
// torch asks posix_memalign for it. That of glibc takes a block that is longer than asked for by the alignment, and gives the
// ends back; so the hole that a map leaves is too short for the next map of the same size, unless a neighbour is
// free too. Here what is given back is as long as what the next one asks for: a block of malloc's, with the place of its
// beginning before the first value.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>

namespace {

constexpr std::uintptr_t ALIGNMENT = 64; // torch's own
constexpr std::size_t MARGIN = ALIGNMENT + sizeof(void*);

void release(void* values) {
    if (!values) return;
    c10::profiledCPUMemoryReporter().Delete(values);
    std::free(static_cast<void**>(values)[-1]);
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(std::size_t bytes) override {
        const c10::Device cpu(c10::DeviceType::CPU);
        if (!bytes) return {nullptr, nullptr, &release, cpu};
        void* block = bytes < SIZE_MAX - MARGIN ? std::malloc(bytes + MARGIN) : nullptr;
        if (!block) c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
        TORCH_CHECK(block, "CPU: not enough memory: you tried to allocate ", bytes, " bytes.");
        const auto first = reinterpret_cast<std::uintptr_t>(block) + sizeof(void*);
        void* values = reinterpret_cast<void*>((first + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
        static_cast<void**>(values)[-1] = block;
        c10::profiledCPUMemoryReporter().New(values, bytes);
        return {values, values, &release, cpu};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

} // namespace

extern "C" void ulna_allocator_use() {
    static Allocator* const allocator = new Allocator; // never destroyed: tensors may be made until the process ends
    c10::SetCPUAllocator(allocator, 1);
}
