"""A 64-10 network learns the handwritten digits that come with the package.

One hidden layer of 64 units and 10 outputs. The network ends without a softmax: the loss takes the
outputs as they are (logits) and applies the softmax itself, once.

    $ python examples/digits_64_10.py
    epoch  1/20  loss 1.009  accuracy 0.725  lr 0.01  val_loss 0.3157  val_accuracy 0.9111
    epoch  2/20  loss 0.2434  accuracy 0.9372  lr 0.01  val_loss 0.1813  val_accuracy 0.9611
    ...
    epoch 20/20  loss 0.00596  accuracy 1  lr 0.01  val_loss 0.05116  val_accuracy 0.9833

    test accuracy 96.7%, loss 0.120
    [[35  0  0  0  1  0  0  0  0  0]
     [ 0 36  0  0  0  0  0  0  0  0]
     [ 0  1 34  0  0  0  0  0  0  0]
     [ 0  0  0 36  0  1  0  0  0  0]
     [ 0  0  0  0 35  0  0  0  0  1]
     [ 0  1  0  0  0 34  0  0  0  1]
     [ 0  0  0  0  0  0 36  0  0  0]
     [ 0  0  0  0  0  0  0 35  1  0]
     [ 0  3  0  0  0  0  1  0 31  0]
     [ 0  0  0  0  0  0  0  0  1 35]]
"""

import argparse

import steepest as sp
from steepest import datasets, metrics, nn
from steepest.train import Trainer

parser = argparse.ArgumentParser(description="A 64-10 network on handwritten digits.")
parser.add_argument("--quick", action="store_true", help="fewer epochs")
epochs = 10 if parser.parse_args().quick else 20

x, y = datasets.load_digits()
train, validation, test = datasets.split(x, y, validation=0.1, test=0.2)
assert test is not None

model = nn.Sequential([nn.Dense(64), nn.ReLU(), nn.Dense(10)], input_shape=64)
optimizer = sp.Adam(model.param_groups(), lr=0.01)
trainer = Trainer(model, sp.losses.softmax_cross_entropy, optimizer, [metrics.accuracy])
trainer.fit(*train, epochs=epochs, validation_data=validation)

scores = trainer.evaluate(*test)
print(f"\ntest accuracy {scores['accuracy']:.1%}, loss {scores['loss']:.3f}")
predicted = trainer.predict(test[0]).argmax(-1)
print(metrics.confusion_matrix(test[1], predicted))
assert scores["accuracy"] >= 0.95
