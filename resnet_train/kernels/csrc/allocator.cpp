// An allocator for large CPU tensors that keeps freed blocks for the next tensor of the same size.
//
// A training step asks for the same blocks over and over. The C library gives large ones back to the system and gets
// them anew, zeroed page by page, which takes up to a fifth of a step of a thin network. Blocks of kLarge bytes and
// more are kept here instead, aligned for huge pages; everything smaller goes to PyTorch's own allocator. What is kept
// serves tensors of that size alone and is returned when asked for: before and after work with other sizes.
//
// Built by kernels/allocator.py against the headers of the installed PyTorch.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <sys/mman.h>

namespace {

constexpr size_t kLarge = size_t(256) << 10;
constexpr size_t kHugePage = size_t(2) << 20;

c10::Allocator* plain = nullptr;  // PyTorch's own

struct Blocks {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free;  // by size
  std::unordered_map<void*, size_t> size;               // of every block made here, in use or free
};

Blocks& blocks() {
  static auto* all = new Blocks;  // tensors may outlive static objects
  return *all;
}

// Up to the next sixteenth of a power of two, so that nearby sizes share blocks and at most 1/8 is wasted.
size_t rounded(size_t bytes) {
  size_t step = kLarge / 16;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void release(void* block) {
  if (block == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(blocks().mutex);
    const auto found = blocks().size.find(block);
    if (found != blocks().size.end()) {
      blocks().free[found->second].push_back(block);
      return;
    }
  }
  plain->raw_deleter()(block);
}

c10::DataPtr owned(void* block) { return {block, block, &release, c10::Device(c10::DeviceType::CPU)}; }

struct KeepingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLarge) return owned(plain->raw_allocate(bytes));
    const size_t size = rounded(bytes);
    {
      const std::lock_guard<std::mutex> lock(blocks().mutex);
      auto& free = blocks().free[size];
      if (!free.empty()) {
        void* block = free.back();
        free.pop_back();
        return owned(block);
      }
      void* block = nullptr;
      if (posix_memalign(&block, size >= kHugePage ? kHugePage : 64, size) == 0) {
#ifdef MADV_HUGEPAGE  // of Linux
        if (size >= kHugePage) madvise(block, size, MADV_HUGEPAGE);
#endif
        blocks().size.emplace(block, size);
        return owned(block);
      }
    }
    return owned(plain->raw_allocate(bytes));  // which says in PyTorch's words that there is not enough
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

}  // namespace

// Gives back the blocks that no tensor uses.
extern "C" void return_free_blocks() {
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  for (const auto& [size, free] : blocks().free)
    for (void* block : free) {
      blocks().size.erase(block);
      std::free(block);
    }
  blocks().free.clear();
}

extern "C" void install_allocator() {
  if (plain != nullptr) return;
  plain = c10::GetCPUAllocator();
  static auto* allocator = new KeepingAllocator;
  c10::SetCPUAllocator(allocator, /*priority=*/100);
}
