"""Models that the tests convert, as a user's module would give them; frameworks are imported when they are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np


def residual() -> Any:
    """Two residual blocks with normalisation, a position that is no parameter of a layer, a linear head."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x: Any) -> Any:
            return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, stride=2)
            self.layer1 = nn.Sequential(Block(4), Block(4))
            self.fc = nn.Linear(4, 10)

        def forward(self, image: Any) -> Any:
            return self.fc(self.layer1(self.stem(image)).mean((2, 3)))

    return Residual()


def attention() -> Any:
    """Multi-head attention, whose projection the exporter transposes and names anew."""
    import torch
    from torch import nn

    torch.manual_seed(1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.LayerNorm(8)

        def forward(self, rows: Any) -> Any:
            return self.norm(rows + self.attn(rows, rows, rows)[0])

    return Attention()


def embedding() -> Any:
    """Two inputs: whole numbers, and a factor for each sample; two outputs."""
    import torch
    from torch import nn

    torch.manual_seed(2)

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, ids: Any, factor: Any) -> Any:
            mean = self.table(ids).mean(1) * factor
            return self.head(mean), mean

    return Embedding()


def branching() -> Any:
    """Control flow that depends on values."""
    from torch import nn

    class Branching(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x

    return Branching()


def one_size() -> Any:
    """A module that takes one batch size."""
    from torch import nn

    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Any) -> Any:
            return self.fc(x).view(2, 4)

    return OneSize()


def svd() -> Any:
    """An operator that ONNX does not have."""
    import torch
    from torch import nn

    class Svd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[0]

    return Svd()


def drifting() -> Any:
    """A module whose answers are others each time: no file can give them."""
    import torch
    from torch import nn

    class Drifting(nn.Module):
        calls = 0

        def forward(self, x: Any) -> Any:
            if not torch.compiler.is_compiling():
                self.calls += 1
            return x + self.calls

    return Drifting()


def keras_cnn() -> Any:
    """The network of InjectTF2's example in small, with a normalisation, and biases that are not all alike."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((28, 28, 1), name="image"),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2d_3", bias_initializer="uniform"),
            keras.layers.BatchNormalization(name="batch_normalization"),
            keras.layers.MaxPool2D(name="max_pooling2d"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(8, activation="relu", name="dense", bias_initializer="uniform"),
            keras.layers.Dropout(0.2, name="dropout"),
            keras.layers.Dense(10, name="dense_1", bias_initializer="uniform"),
            keras.layers.Softmax(name="softmax"),
        ],
        name="sequential",
    )
    return model


def keras_nested() -> Any:
    """A model inside a model, one layer used twice, a recurrent layer, attention, two inputs and two outputs."""
    import keras

    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.layers.Input((12, 8)), keras.layers.Dense(8, name="inner")], name="backbone")
    rows = keras.Input((12, 8), name="rows")
    ids = keras.Input((5,), dtype="int32", name="ids")
    read = keras.layers.Embedding(20, 8, name="embedding")(ids)
    shared = keras.layers.Dense(8, name="shared")
    x = shared(shared(inner(rows)))
    x = keras.layers.MultiHeadAttention(2, 4, name="mha")(x, read)
    x = keras.layers.LSTM(6, name="lstm")(x)
    heads = [keras.layers.Dense(4, name="head_a")(x), keras.layers.Dense(3, name="head_b")(x)]
    return keras.Model([rows, ids], heads, name="nested")


def tf_module() -> Any:
    """A plain tf.Module with one serving function."""
    import tensorflow as tf

    class Linear(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="linear")
            with self.name_scope:
                values = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
                self.kernel = tf.Variable(values, name="kernel")
                self.bias = tf.Variable(np.array([1, 2, 3], np.float32), name="bias")

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            with tf.name_scope("linear"):
                return {"scores": tf.matmul(x, self.kernel) + self.bias}

    return Linear()


def _digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def digits_mlp() -> Any:
    """Scaling, projection and a network of two hidden layers on the 8x8 digits."""
    from sklearn.decomposition import PCA
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    pixels, labels = _digits()
    network = MLPClassifier((16, 8), max_iter=15, random_state=0)
    return make_pipeline(MinMaxScaler(), PCA(20, random_state=0), network).fit(pixels, labels)


def digits_linear() -> Any:
    """Scaling and logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [("scale", StandardScaler()), ("classify", LogisticRegression(max_iter=60))]
    return Pipeline(steps).fit(*_digits())


def digits_forest() -> Any:
    """Trees, whose numbers are attributes of one operator."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(4, max_depth=4, random_state=0).fit(*_digits())


def digits_svc() -> Any:
    """A linear classifier without probabilities."""
    from sklearn.svm import LinearSVC

    return LinearSVC(max_iter=60, random_state=0).fit(*_digits())


def digits_ridge() -> Any:
    """A regressor."""
    from sklearn.linear_model import Ridge

    return Ridge().fit(*_digits())


def not_fitted() -> Any:
    """An estimator that was never fitted."""
    from sklearn.svm import LinearSVC

    return LinearSVC()


def raises() -> Any:
    """A factory with a mistake in it."""
    missing: dict[str, int] = {}
    return missing["weights"]


def needs_torch() -> Any:
    """A factory that wants what may not be there."""
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def three() -> int:
    """No model at all."""
    return 3


NUMBER = 3
