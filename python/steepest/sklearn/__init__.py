"""scikit-learn's `MLPClassifier` and `MLPRegressor`, trained by steepest: change the import, keep the script.

Parameters, attributes and meanings are scikit-learn 1.9's; with the same `random_state` in float64 the
initial weights, the batches and `loss_curve_` are its own. They take more besides: every optimizer as `solver`,
schedules, dropout, L1, class weights, validation data of one's own, callbacks, and files without pickle.

>>> from sklearn.datasets import load_iris
>>> from steepest.sklearn import MLPClassifier
>>> X, y = load_iris(return_X_y=True)
>>> clf = MLPClassifier(
...     solver="adamw", learning_rate="cosine", learning_rate_init=0.01, max_iter=60, tol=0, random_state=0
... )
>>> clf.fit(X, y, X_val=X, y_val=y).score(X, y) > 0.95
True

Needs scikit-learn 1.6 or newer: `pip install "steepest[sklearn]"`.

Parameters, in scikit-learn's order; n is the number of a batch's rows, or the sum of their weights:

- `hidden_layer_sizes` ((100,)): units of each hidden layer; () leaves linear, logistic or softmax regression.
- `activation` ("relu"): of the hidden layers: "identity", "logistic", "tanh", "relu".
- `solver` ("adam"): an optimizer of steepest in small letters ("sgd", "momentum", "rmsprop", "adagrad", "adam",
  "adamw", "nadam", "lion"), or "lbfgs", SciPy's L-BFGS-B over all samples, with neither `dropout` nor `l1`.
- `alpha` (1e-4): alpha / 2 |W|^2 / n is added to the loss, W being the weights without the biases.
- `batch_size` ("auto"): rows per step; "auto" is 200, or all if there are fewer.
- `learning_rate` ("constant"): "invscaling", learning_rate_init / (samples seen + 1)^power_t, and "adaptive", a
  fifth whenever training stalls instead of its end; as in scikit-learn, "adam" ignores these two. Beyond it: "cosine",
  "linear" (to 0 over `max_iter` epochs), "one-cycle", "exponential" (times 0.95 an epoch), "step" (half every
  10 epochs), or any schedule `step -> rate`, which `learning_rate_init` plays no part in; with these, no warning tells
  that `max_iter` came before convergence.
- `learning_rate_init` (1e-3), `power_t` (0.5), `max_iter` (200 epochs, or iterations of L-BFGS), `shuffle` (True).
- `random_state` (None): of the initial weights, the batches and what `early_stopping` holds out; with `dropout`, an
  own generator is seeded from it.
- `tol` (1e-4), `n_iter_no_change` (10): training ends when more epochs in a row have not made the loss, or with early
  stopping the score, better by `tol`.
- `verbose` (False): prints scikit-learn's lines.
- `warm_start` (False): `fit` goes on from the weights and, unlike scikit-learn, from the optimizer's state, with the
  parameters as they are then; a schedule by name begins anew.
- `momentum` (0.9, below 1), `nesterovs_momentum` (True): of "sgd".
- `early_stopping` (False): holds `validation_fraction` (0.1) out, unless `fit` is given data to validate on, and ends
  with the weights of the epoch with the best score: accuracy, or R^2.
- `beta_1` (0.9), `beta_2` (0.999), `epsilon` (1e-8): of "adam", "adamw" and "nadam".
- `max_fun` (15000): evaluations that L-BFGS may make.

And beyond scikit-learn's, by name:

- `dropout` (0): with what probability each unit of the hidden layers is left out in training.
- `l1` (0): l1 |W|_1 / n is added to the loss.
- `solver_options` (None): further options of the optimizer, as `{"max_norm": 1.0}` or "adamw"'s
  `{"weight_decay": 0.05}`: see its class.
- `callbacks` (None): a list of `steepest.callbacks`. Logs of an epoch are loss, lr and, with validation data, val_loss
  and val_score; their `trainer` has `model`, `optimizer`, `history` and `stop_training`. `clone` copies them; `fit`
  uses those that are there, so that they can be asked afterwards. Epochs count on with `warm_start`.

After `fit`: scikit-learn's `coefs_`, `intercepts_`, `loss_`, `best_loss_`, `loss_curve_`, `validation_scores_`,
`best_validation_score_`, `n_iter_`, `t_`, `n_layers_`, `n_outputs_`, `out_activation_`, `n_features_in_` and
`feature_names_in_`, and besides `validation_loss_curve_` (None without validation data) and `history_`, the logs of all
epochs. `coefs_` and `intercepts_` are views of one flat array; what is written into them holds.

The loss of a classifier is that of the logits. scikit-learn's clips probabilities, so that a sample costs at most 36
(15.9 in float32); where outputs are as confident and wrong as that, as with features that are not scaled, its curve
is lower, and what looks at the loss (`tol`, L-BFGS) may end elsewhere.

scikit-learn's own callbacks (1.9, `set_callbacks`) work, too: an epoch is a subtask of the fit.
"""

try:
    import sklearn.utils.validation
except ImportError as error:
    raise ImportError('steepest.sklearn needs scikit-learn: pip install "steepest[sklearn]"') from error
if not hasattr(sklearn.utils.validation, "validate_data"):
    raise ImportError('steepest.sklearn needs scikit-learn 1.6 or newer: pip install -U "steepest[sklearn]"')

from steepest.sklearn._classifier import MLPClassifier
from steepest.sklearn._regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
