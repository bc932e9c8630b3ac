// One struct per rule: what it keeps, and how a step's scalars follow from its options.
#include <cmath>

#include "../kernels/functions.hpp"
#include "../parallel.hpp"
#include "low_precision.hpp"
#include "module.hpp"

namespace steepest {
namespace {

double number(const py::dict& options, const char* name) { return options[name].cast<double>(); }
bool flag(const py::dict& options, const char* name) { return options[name].cast<bool>(); }

// 1 - base^n, by squaring: the same bits on every machine, which libm's pow does not promise.
class OneMinusPower {
 public:
  explicit OneMinusPower(double base) {
    for (; count_ < 63 && !(std::abs(base) < 0x1p-54); base *= base) squares_[count_++] = base;
  }
  double operator()(std::int64_t n) const {
    if (n >> count_ != 0) return 1;  // what is subtracted is too small to show
    double power = 1;
    for (auto bits = static_cast<std::uint64_t>(n); bits != 0; bits &= bits - 1) {
      power *= squares_[__builtin_ctzll(bits)];
    }
    return 1 - power;
  }

 private:
  double squares_[63] = {};  // base^(2^i)
  int count_ = 0;
};

template <class T>
T round_to(double x) {
  return static_cast<T>(x);
}

using StateNames = std::vector<const char*>;

// What most rules have in common.
struct Plain {
  static constexpr bool keeps_mu_product = false;
  double initial_state() const { return 0; }
};

struct SgdRule : Plain {
  double momentum, dampening;
  bool nesterov, lr_in_velocity;

  template <class T>
  using Step = SgdStep<T>;
  explicit SgdRule(const py::dict& o)
      : momentum(number(o, "momentum")),
        dampening(number(o, "dampening")),
        nesterov(flag(o, "nesterov")),
        lr_in_velocity(flag(o, "lr_in_velocity")) {}
  StateNames state_names() const { return momentum == 0 ? StateNames{} : StateNames{"momentum_buffer"}; }

  template <class T>
  Step<T> prepare(double lr, const Progress& progress) const {
    const double undamped = progress.step == 1 ? 1 : 1 - dampening;  // the first buffer is the gradient
    return {round_to<T>(lr), round_to<T>(momentum), round_to<T>(undamped), momentum != 0, nesterov, lr_in_velocity};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().sgd;
  }
  static auto coded_kernel() { return coded_rules().sgd; }
};

struct MomentumRule : Plain {
  double beta;

  template <class T>
  using Step = MomentumStep<T>;
  explicit MomentumRule(const py::dict& o) : beta(number(o, "beta")) {}
  StateNames state_names() const { return {"momentum_buffer"}; }

  template <class T>
  Step<T> prepare(double lr, const Progress&) const {
    return {round_to<T>(lr), round_to<T>(beta), round_to<T>(1 - beta)};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().momentum;
  }
  static auto coded_kernel() { return coded_rules().momentum; }
};

struct RmspropRule : Plain {
  double alpha, eps, momentum;
  bool centered, eps_inside_sqrt;

  template <class T>
  using Step = RmspropStep<T>;
  explicit RmspropRule(const py::dict& o)
      : alpha(number(o, "alpha")),
        eps(number(o, "eps")),
        momentum(number(o, "momentum")),
        centered(flag(o, "centered")),
        eps_inside_sqrt(flag(o, "eps_inside_sqrt")) {}
  StateNames state_names() const {
    StateNames names{"square_avg"};
    if (centered) names.push_back("grad_avg");
    if (momentum != 0) names.push_back("momentum_buffer");
    return names;
  }

  template <class T>
  Step<T> prepare(double lr, const Progress&) const {
    return {round_to<T>(lr),
            round_to<T>(alpha),
            round_to<T>(1 - alpha),
            round_to<T>(momentum),
            round_to<T>(eps_inside_sqrt ? eps : 0),
            round_to<T>(eps_inside_sqrt ? 0 : eps),
            centered,
            momentum != 0};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().rmsprop;
  }
  static auto coded_kernel() { return coded_rules().rmsprop; }
};

struct AdagradRule : Plain {
  double lr_decay, initial_accumulator_value, eps;
  bool eps_inside_sqrt;

  template <class T>
  using Step = AdagradStep<T>;
  explicit AdagradRule(const py::dict& o)
      : lr_decay(number(o, "lr_decay")),
        initial_accumulator_value(number(o, "initial_accumulator_value")),
        eps(number(o, "eps")),
        eps_inside_sqrt(flag(o, "eps_inside_sqrt")) {}
  StateNames state_names() const { return {"sum"}; }
  double initial_state() const { return initial_accumulator_value; }

  template <class T>
  Step<T> prepare(double lr, const Progress& progress) const {
    const double rate = lr / (1 + static_cast<double>(progress.step - 1) * lr_decay);
    return {round_to<T>(rate), round_to<T>(eps_inside_sqrt ? eps : 0), round_to<T>(eps_inside_sqrt ? 0 : eps)};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().adagrad;
  }
  static auto coded_kernel() { return coded_rules().adagrad; }
};

struct AdamRule : Plain {
  double beta1, beta2, eps, decoupled_decay;
  OneMinusPower scale1{beta1}, scale2{beta2};  // of averages that started from 0
  bool amsgrad, epsilon_hat;

  template <class T>
  using Step = AdamStep<T>;
  explicit AdamRule(const py::dict& o)
      : beta1(number(o, "beta1")),
        beta2(number(o, "beta2")),
        eps(number(o, "eps")),
        decoupled_decay(number(o, "decoupled_decay")),
        amsgrad(flag(o, "amsgrad")),
        epsilon_hat(flag(o, "epsilon_hat")) {}
  StateNames state_names() const {
    return amsgrad ? StateNames{"exp_avg", "exp_avg_sq", "max_exp_avg_sq"} : StateNames{"exp_avg", "exp_avg_sq"};
  }

  template <class T>
  Step<T> prepare(double lr, const Progress& progress) const {
    const double correction1 = scale1(progress.step);
    const double sqrt_correction2 = square_root(scale2(progress.step));
    const double step_size = epsilon_hat ? lr * sqrt_correction2 / correction1 : lr / correction1;
    return {round_to<T>(step_size),
            round_to<T>(beta1),
            round_to<T>(1 - beta1),
            round_to<T>(beta2),
            round_to<T>(1 - beta2),
            round_to<T>(epsilon_hat ? 1 : 1 / sqrt_correction2),
            round_to<T>(eps),
            round_to<T>(1 - lr * decoupled_decay),
            amsgrad};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().adam;
  }
  static auto coded_kernel() { return coded_rules().adam; }
};

struct NadamRule : Plain {
  static constexpr bool keeps_mu_product = true;
  double beta1, beta2, eps, momentum_decay, decoupled_decay;
  OneMinusPower scale2{beta2};

  template <class T>
  using Step = NadamStep<T>;
  explicit NadamRule(const py::dict& o)
      : beta1(number(o, "beta1")),
        beta2(number(o, "beta2")),
        eps(number(o, "eps")),
        momentum_decay(number(o, "momentum_decay")),
        decoupled_decay(number(o, "decoupled_decay")) {}
  StateNames state_names() const { return {"exp_avg", "exp_avg_sq"}; }

  double mu(std::int64_t t) const {
    constexpr double log_096 = -0x1.4e69ed6d80eaep-5;  // log(0.96)
    return beta1 * (1 - 0.5 * exponential(static_cast<double>(t) * momentum_decay * log_096));
  }
  template <class T>
  Step<T> prepare(double lr, Progress& progress) const {
    const double mu_t = mu(progress.step), mu_next = mu(progress.step + 1);
    progress.multiply(mu_t);
    return {round_to<T>(lr * (1 - mu_t) / (1 - progress.mu_product)),
            round_to<T>(lr * mu_next / (1 - progress.mu_product * mu_next)),
            round_to<T>(beta1),
            round_to<T>(1 - beta1),
            round_to<T>(beta2),
            round_to<T>(1 - beta2),
            round_to<T>(1 / square_root(scale2(progress.step))),
            round_to<T>(eps),
            round_to<T>(1 - lr * decoupled_decay)};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().nadam;
  }
  static auto coded_kernel() { return coded_rules().nadam; }
};

struct LionRule : Plain {
  double beta1, beta2, decoupled_decay;

  template <class T>
  using Step = LionStep<T>;
  explicit LionRule(const py::dict& o)
      : beta1(number(o, "beta1")), beta2(number(o, "beta2")), decoupled_decay(number(o, "decoupled_decay")) {}
  StateNames state_names() const { return {"exp_avg"}; }

  template <class T>
  Step<T> prepare(double lr, const Progress&) const {
    return {round_to<T>(lr),    round_to<T>(beta1),     round_to<T>(1 - beta1),
            round_to<T>(beta2), round_to<T>(1 - beta2), round_to<T>(1 - lr * decoupled_decay)};
  }
  template <class T>
  static auto kernel() {
    return rules<T>().lion;
  }
  static auto coded_kernel() { return coded_rules().lion; }
};

template <class Rule>
class RuleOptimizer final : public Optimizer {
  template <class T>
  struct Prepared {
    Gradient<T> gradient;
    typename Rule::template Step<T> step;
  };
  union Scalars {
    Prepared<float> f32;
    Prepared<double> f64;
  };

  std::vector<const char*> state_names(std::size_t group) const override { return rules_[group].state_names(); }

  double initial_state(std::size_t group) const override { return rules_[group].initial_state(); }

  bool keeps_mu_product() const override { return Rule::keeps_mu_product; }

  void check_rule(std::size_t group, const py::dict& options) const override {
    const auto wanted = Rule(options).state_names(), kept = rules_[group].state_names();
    if (wanted == kept) return;
    throw py::value_error("options: expected ones whose state is that of the existing optimizer, " +
                          text(py::cast(kept)) + ", got ones that need " + text(py::cast(wanted)) +
                          "; make a new optimizer");
  }

  void set_rule(std::size_t group, const py::dict& options) override {
    if (group == rules_.size()) {
      rules_.emplace_back(options);
    } else {
      rules_[group] = Rule(options);
    }
  }

  void drop_rule() override { rules_.pop_back(); }

  template <class T>
  Prepared<T> prepared(Tensor& tensor, double scale) const {
    const Common& c = common(tensor.group);
    ++tensor.progress.step;
    return {{c.maximize ? -scale : scale, round_to<T>(-c.max_value), round_to<T>(c.max_value), round_to<T>(c.l1),
             round_to<T>(c.l2)},
            rules_[tensor.group].template prepare<T>(c.lr, tensor.progress)};
  }

  void prepare(std::vector<Work>& work, double scale) override {
    scalars_.clear();
    Progress before{};
    const Tensor* last = nullptr;
    for (Work& w : work) {
      Tensor& tensor = *w.tensor;
      const bool is_like_last = last != nullptr && last->group == tensor.group &&
                                last->p.is_double == tensor.p.is_double && before == tensor.progress;
      if (is_like_last) {
        tensor.progress = last->progress;
      } else {
        before = tensor.progress;
        Scalars scalars;
        if (tensor.p.is_double) {
          scalars.f64 = prepared<double>(tensor, scale);
        } else {
          scalars.f32 = prepared<float>(tensor, scale);
        }
        scalars_.push_back(scalars);
      }
      last = &tensor;
      w.scalars = scalars_.size() - 1;
    }
  }

  template <class T>
  void update(const Work& w, const Prepared<T>& scalars, const T* g, std::ptrdiff_t begin,
              std::ptrdiff_t n) const noexcept {
    Arrays<T> a{w.tensor->p.as<T>() + begin, g, {}, ahead(*w.tensor)};
    for (std::size_t i = 0; i < w.tensor->state.size(); ++i) a.state[i] = w.tensor->state[i].template as<T>() + begin;
    Rule::template kernel<T>()(scalars.gradient, scalars.step, a, n);
  }

  template <class T>
  void run(const Work& w, const Prepared<T>& scalars, std::ptrdiff_t begin, std::ptrdiff_t n) const noexcept {
    const T* g = w.g.as<const T>();
    const std::uint8_t* mask = w.tensor->mask.keep;
    if (mask == nullptr) {
      update(w, scalars, g + begin, begin, n);
      return;
    }
    // What is pruned is +0 with a gradient of +0, whatever was there, and +0 afterwards.
    const auto keep = rules<T>().keep;
    T* p = w.tensor->p.as<T>();
    T kept[kMaskBlock];
    const bool reads_p = scalars.gradient.l1 != 0 || scalars.gradient.l2 != 0;  // beside p itself
    for (const std::ptrdiff_t end = begin + n; begin < end; begin += n) {
      n = std::min(kMaskBlock - begin % kMaskBlock, end - begin);
      keep(mask + begin, g + begin, kept, n);
      if (reads_p) keep(mask + begin, p + begin, p + begin, n);
      update(w, scalars, static_cast<const T*>(kept), begin, n);
      keep(mask + begin, p + begin, p + begin, n);
    }
  }

  // Apart, for it needs room on the stack.
  [[gnu::noinline]] void run_low_precision(const Work& w, const Prepared<float>& scalars, std::ptrdiff_t begin,
                                           std::ptrdiff_t n) const noexcept {
    const auto rule = Rule::template kernel<float>();
    LowPrecisionStep(*w.tensor, w.g, seed(), ahead(*w.tensor))
        .run(
            begin, n,
            [&](const Arrays<float>& a, std::ptrdiff_t size) noexcept {
              rule(scalars.gradient, scalars.step, a, size);
            },
            [&](const CodedArrays& a, std::ptrdiff_t size) noexcept {
              Rule::coded_kernel()(scalars.gradient, scalars.step, a, size, rule);
            });
  }

  void run(const Work& w, std::ptrdiff_t begin, std::ptrdiff_t n) const noexcept override {
    const Scalars& scalars = scalars_[w.scalars];
    if (w.tensor->is_low_precision()) {
      run_low_precision(w, scalars.f32, begin, n);
    } else if (w.g.is_double) {
      run<double>(w, scalars.f64, begin, n);
    } else {
      run<float>(w, scalars.f32, begin, n);
    }
  }

  std::vector<Rule> rules_;
  std::vector<Scalars> scalars_;
};

template <class Rule>
void bind(py::module_& m, const char* name) {
  py::class_<RuleOptimizer<Rule>, Optimizer>(m, name).def(py::init<>());
}

// pybind11's own way to call it takes longer than all the rest of a step of small arrays. The descriptor has checked
// the type of self.
PyObject* step(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  try {
    if (n != 2) throw py::type_error("step: expected grads and grad_scale, got " + std::to_string(n) + " arguments");
    auto* const optimizer =
        reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr<Optimizer>();
    if (optimizer == nullptr) throw py::type_error("step: expected an optimizer whose __init__ was called");
    optimizer->step(py::reinterpret_borrow<py::object>(args[0]), py::reinterpret_borrow<py::object>(args[1]));
    Py_RETURN_NONE;
  } catch (...) {
    py::detail::try_translate_exceptions();
    return nullptr;
  }
}

// Makes it a method of the type.
void add_step(const py::object& type) {
  static PyMethodDef method{"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)), METH_FASTCALL,
                            "step(grads, grad_scale)"};
  type.attr("step") =
      py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &method));
}

}  // namespace

void register_rules(py::module_& m) {
  m.attr("_bfloat16_bits") = bfloat16_bits();
  py::class_<Optimizer>(m, "Optimizer")
      .def("add_group", &Optimizer::add_group, py::arg("params"), py::arg("options"))
      .def("set_options", &Optimizer::set_options, py::arg("group"), py::arg("options"))
      .def("set_masks", &Optimizer::set_masks, py::arg("masks"))
      .def("masks", &Optimizer::masks)
      .def("snapshot", &Optimizer::snapshot, py::arg("copy") = true)
      .def("restore", &Optimizer::restore, py::arg("tensors"), py::arg("steps"), py::arg("options") = py::list(),
           py::arg("copy") = true)
      .def("set_precision", &Optimizer::set_precision, py::arg("state_dtype"), py::arg("seed"),
           py::arg("has_whole_masters"))
      .def("set_clipping", &Optimizer::set_clipping, py::arg("max_norm"), py::arg("nonfinite"))
      .def_readwrite("grouped", &Optimizer::grouped)
      .def_property_readonly("last_norm", &Optimizer::last_norm)
      .def_property_readonly("steps", &Optimizer::steps);
  add_step(m.attr("Optimizer"));

  bind<SgdRule>(m, "SGD");
  bind<MomentumRule>(m, "Momentum");
  bind<RmspropRule>(m, "RMSprop");
  bind<AdagradRule>(m, "Adagrad");
  bind<AdamRule>(m, "Adam");
  bind<NadamRule>(m, "NAdam");
  bind<LionRule>(m, "Lion");
}

}  // namespace steepest
