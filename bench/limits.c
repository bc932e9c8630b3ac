/* The arithmetic peak of a core: roofline.py builds this for the machine it runs on, with additions and
   multiplications fused and apart. LANES: floats in a register. */
#include <stddef.h>

typedef float Vector __attribute__((vector_size(4 * LANES)));
enum { CHAINS = 12 }; /* that do not wait for one another */

/* n times x = a x + b in all lanes of all chains. */
float multiply_add(ptrdiff_t n, float a, float b) {
  Vector x[CHAINS] = {{0}};
  for (ptrdiff_t i = 0; i < n; ++i) {
    for (int k = 0; k < CHAINS; ++k) x[k] = x[k] * a + b;
  }
  float sum = 0;
  for (int k = 0; k < CHAINS; ++k) sum += x[k][0];
  return sum;
}
