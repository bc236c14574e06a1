// The CPU backend as a program of its own, for a machine that is emulated (tests/kernels/test_neon.py): batches in on
// standard input, bytes out on standard output, in the format of `Request`.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <exception>
#include <string>
#include <vector>

#include "../../../csrc/cpu.h"
#include "../wire.h"

namespace {

// Followed by the three lists of wire.h and by `bytes` bytes of memory. The addresses in `tensors` count from the
// start of that memory. The answer is the floating-point mode afterwards and the length of an error message (each 64
// bits), the message, and the memory as it is then.
struct Request {
  char instruction_set[8];
  uint64_t mode;  // of floating-point arithmetic, for the call
  int64_t threads, tensors, recipe, params, bytes;
};

template <class T>
void receive(T* to, size_t n) {
  if (fread(to, sizeof(T), n, stdin) != n) exit(2);
}

template <class T>
std::vector<T> receive(int64_t n) {
  std::vector<T> list(static_cast<size_t>(n));
  receive(list.data(), list.size());
  return list;
}

void send(const void* from, size_t n) {
  if (fwrite(from, 1, n, stdout) != n) exit(3);
}

#ifdef __aarch64__
uint64_t mode() {
  uint64_t bits;
  asm volatile("mrs %0, fpcr" : "=r"(bits) : : "memory");
  return bits;
}
void set_mode(uint64_t bits) { asm volatile("msr fpcr, %0" : : "r"(bits) : "memory"); }
#else
#error "nothing here sets the floating-point mode of this processor"
#endif

// As aligned as the memory that Python holds, whose addresses count from a multiple of this.
constexpr size_t kAlignment = 4096;

void serve(const Request& request) {
  std::vector<int64_t> tensors = receive<int64_t>(request.tensors);
  const std::vector<int64_t> recipe = receive<int64_t>(request.recipe);
  const std::vector<double> params = receive<double>(request.params);
  const size_t bytes = static_cast<size_t>(request.bytes);
  unsigned char* memory = static_cast<unsigned char*>(aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment));
  receive(memory, bytes);
  for (size_t i = 0; i < tensors.size(); i += 3 + 2 * static_cast<size_t>(tensors[i + 2])) {
    tensors[i] += reinterpret_cast<int64_t>(memory);
  }
  std::string message;
  const uint64_t before = mode();
  uint64_t after = 0;
  try {
    fastinit::set_instruction_set(request.instruction_set);
    set_mode(request.mode);
    fastinit::Owned owned;
    fastinit::Batch(fastinit::from_wire(tensors, recipe, params, owned), static_cast<int>(request.threads), false)
        .finish();
    after = mode();
  } catch (const std::exception& e) {
    message = e.what();
  }
  set_mode(before);
  const uint64_t head[2] = {after, message.size()};
  send(head, sizeof(head));
  send(message.data(), message.size());
  send(memory, bytes);
  fflush(stdout);
  free(memory);
}

}  // namespace

int main() {
  std::string names;
  for (const std::string& name : fastinit::instruction_sets()) names += name + " ";
  names += "\n";
  send(names.data(), names.size());
  fflush(stdout);
  for (Request request; fread(&request, sizeof(request), 1, stdin) == 1;) serve(request);
  return 0;
}
