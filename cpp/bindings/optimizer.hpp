// A step over registered tensors: checks the gradients, drops the GIL, runs one rule over all of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "norm.hpp"

namespace steepest {

// what[key]
std::string key_name(const std::string& what, py::handle key);

// What a tensor remembers between steps beside its state arrays.
struct Progress {
  std::int64_t step = 0;
  double mu_product = 1;  // NAdam's
  bool in_float = false;  // whether mu_product is kept as a float

  void multiply(double mu) {
    mu_product = in_float ? static_cast<float>(mu_product) * static_cast<float>(mu) : mu_product * mu;
  }
  bool operator==(const Progress& other) const {
    return step == other.step && mu_product == other.mu_product && in_float == other.in_float;
  }
};

// Which elements a step keeps; it leaves +0 where the array, of bool and a copy, has False.
struct Mask {
  py::object array = py::none();
  const std::uint8_t* keep = nullptr;  // null: all of them
};

// How the rule's state is kept: as it is computed, or in fewer bytes.
enum class Storage { full, bfloat16, eight_bit };

// Of all groups: how state is kept (none: as the parameter's dtype has it), what the rounding depends on (none: to
// nearest), and whether bfloat16 parameters have float32 master weights or the 16 bits that they lack.
struct Precision {
  std::optional<Storage> storage;
  std::optional<std::uint32_t> seed;
  bool has_whole_masters = false;
};

struct Tensor {
  std::string name;
  View p;
  py::dtype dtype;          // of p when it was registered
  std::vector<View> state;  // the rule's arrays, of codes the scales and last bits, what makes p a float32
  std::size_t group;
  Progress progress{};
  const void* apart = nullptr;  // the last gradient's memory, which overlapped nothing
  Mask mask{};
  Storage storage = Storage::full;
  std::size_t slots = 0;            // the rule's arrays
  bool is_squares[3] = {};          // whether a slot holds averages of squares
  std::vector<std::string> keys{};  // the names of `state`

  bool is_low_precision() const { return storage != Storage::full || p.is_bfloat16; }
  const View& master() const { return state.back(); }
  bool has_whole_master() const { return master().itemsize == sizeof(float); }
  float* scales(std::size_t slot) const { return state[slots + slot].as<float>(); }
  // The place in `state` of the last bits of a slot whose codes have a sign; of `slots`, that past the last one's.
  std::size_t bits_at(std::size_t slot) const {
    return 2 * slots + static_cast<std::size_t>(std::count(is_squares, is_squares + slot, false));
  }
  std::uint8_t* last_bits(std::size_t slot) const { return state[bits_at(slot)].as<std::uint8_t>(); }
  // Where a range ends that would end here: groups of codes are not divided.
  std::ptrdiff_t edge(std::ptrdiff_t at) const {
    return is_low_precision() ? std::min((at + kCodeGroup - 1) / kCodeGroup * kCodeGroup, p.size) : at;
  }
};

// The options of a group that every rule has.
struct Common {
  double lr = 0, l1 = 0, l2 = 0, max_value = std::numeric_limits<double>::infinity();
  bool maximize = false;
  py::object schedule;  // step -> lr, or none
};

// One step's share of a tensor: tensors lie one after the other in 0..total; this one ends at `end`.
struct Work {
  Tensor* tensor;
  View g;
  std::ptrdiff_t end;
  std::size_t scalars = 0;  // of what the rule prepared
};

// Lets the gradients go when a step ends, however it ends.
struct Release {
  std::vector<Work>& work;
  ~Release() { work.clear(); }
};

enum class Nonfinite { propagate, skip, raise };

class Optimizer;

// The caller's turn with an optimizer. Waits for another thread's without the GIL.
class Turn {
 public:
  explicit Turn(Optimizer& optimizer);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Optimizer& optimizer_;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  void add_group(const py::object& container, const py::dict& options);
  void set_options(std::size_t group, const py::dict& options);
  void step(const py::object& gradients, const py::object& grad_scale);
  void set_masks(const py::list& masks);  // a mask or none for each tensor
  py::list masks();                       // copies of them
  py::list snapshot(bool copy);  // a dict for each tensor: step, its mask if any, and its state, in copies or itself
  // Takes over what snapshot gave, in copies or the arrays themselves, and a dict of options for each group (or none);
  // all of it is checked first.
  void restore(const py::list& tensors, const py::object& steps, const py::list& options, bool copy);
  std::optional<double> last_norm() const { return last_norm_; }

  void set_precision(const py::object& state_dtype, const py::object& seed, bool has_whole_masters);
  void set_clipping(double max_norm, const std::string& nonfinite);
  bool grouped = false;  // gradients come as a sequence with an entry for each group
  std::int64_t steps() const { return steps_; }

 protected:
  virtual std::vector<const char*> state_names(std::size_t group) const = 0;
  virtual double initial_state(std::size_t group) const = 0;
  virtual bool keeps_mu_product() const = 0;
  virtual void check_rule(std::size_t group, const py::dict& options) const = 0;  // refuses a change of state
  virtual void set_rule(std::size_t group, const py::dict& options) = 0;          // appends a group's first
  virtual void drop_rule() = 0;                                                   // the last group's
  virtual void prepare(std::vector<Work>&, double scale) = 0;                     // and counts the step
  virtual void run(const Work&, std::ptrdiff_t begin, std::ptrdiff_t n) const noexcept = 0;

  const Common& common(std::size_t group) const { return groups_[group].common; }
  std::optional<std::uint32_t> seed() const { return precision_.seed; }
  // How many bytes ahead of what is worked on are asked for in a tensor's arrays; 0: none.
  std::ptrdiff_t ahead(const Tensor& tensor) const { return bytes_ahead(last_bytes_, 2 + tensor.state.size()); }

 private:
  friend class Turn;
  friend class Tensors;

  enum class Kind { single, sequence, mapping };
  using Output = std::pair<const View*, const std::string*>;  // a parameter or a state, and the parameter's name
  struct Group {
    py::object container;
    Kind kind;
    std::vector<py::object> keys;
    std::size_t first;  // of its tensors
    Common common;
  };

  static Group outline(const py::object& container);
  static Common read_common(const py::dict& options);
  std::string group_name(const std::string& what, std::size_t group) const;
  void check_differences(std::size_t group, Storage wanted) const;
  void count_slots(Tensor& tensor) const;
  void add_state(Tensor& tensor) const;
  Tensor make_tensor(const py::object& array, const std::string& name, std::size_t group) const;
  static std::vector<Output> sorted_outputs(const std::vector<Tensor>& all);
  void collect(const py::object& gradients);
  void collect_group(std::size_t group, const py::object& gradients);
  static bool is_in_place(const Group& group, std::size_t i, const Tensor& tensor);
  std::string gradient_name(const Tensor& tensor, const Group& group, std::size_t i) const;
  static View fitted(const Tensor& tensor, const std::string& name, py::object g);
  void collect_tensor(Tensor& tensor, const Group& group, std::size_t i, const py::object& g);
  const Output* overlapped(const View& g) const;
  void apply_schedules();
  void announce() const { parallel::announce(last_bytes_); }  // what comes is most likely as the last step
  void take(double grad_scale);
  static Mask make_mask(const py::object& mask, const Tensor& tensor, const std::string& name);
  static Span span(const Work& w);
  void read_state(std::size_t i, py::handle saved, Use use, Progress& progress, Mask& mask,
                  std::vector<View>& arrays) const;
  void take_outputs();
  // Whether the gradient is finite, and stays so when it is multiplied.
  static bool stays_finite(const Work& w, double scale);
  [[noreturn]] void raise_nonfinite(double scale) const;

  std::vector<Group> groups_;
  std::vector<Tensor> tensors_;
  std::vector<Output> outputs_;  // parameters and state by address
  std::vector<Work> work_;
  Pins pins_;
  double max_norm_ = std::numeric_limits<double>::infinity();
  Precision precision_;
  Nonfinite nonfinite_ = Nonfinite::propagate;
  std::int64_t steps_ = 0;
  std::ptrdiff_t last_bytes_ = 0;
  std::optional<double> last_norm_;
  std::atomic<std::uint64_t> turn_{0};  // 0: free, else 1 + forks of the process that took it
  std::atomic<std::thread::id> turn_of_{};
  std::atomic<std::uint64_t> waiting_{0};  // as turn_, of a process with a thread that waits: newcomers let it pass
};

}  // namespace steepest
