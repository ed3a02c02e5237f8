# SPDX-License-Identifier: Apache-2.0
"""TIM-Net in Keras, written from the paper's description: what the benchmark runs against.

As anyone would write it with Keras' own layers. Ours is compared with it, so it is given what makes
Keras fast: a traced graph of a fixed input shape, for scoring and for training steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

layers = keras.layers


class WeightedScales(layers.Layer):
    """Dynamic fusion: a sum of the scales' vectors with learned weights."""

    def build(self, input_shape: Any) -> None:
        """Make one weight a scale."""
        self.scale_weights = self.add_weight(
            name="scale_weights",
            shape=(input_shape[1], 1),
            initializer=keras.initializers.RandomUniform(-0.05, 0.05),
        )

    def call(self, scales: tf.Tensor) -> tf.Tensor:
        """Sum (batch, scales, size) over the scales."""
        return tf.squeeze(tf.matmul(scales, self.scale_weights, transpose_a=True), -1)


def _block(hidden: Any, size: int, kernel: int, dilation: int, dropout: float) -> Any:
    """Temporal-aware block: two causal layers make a gate for the block's own input."""
    gate = hidden
    for _ in range(2):
        gate = layers.Conv1D(size, kernel, padding="causal", dilation_rate=dilation)(gate)
        gate = layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(gate)
        gate = layers.ReLU()(gate)
        gate = layers.SpatialDropout1D(dropout)(gate)
    return layers.Multiply()([hidden, layers.Activation("sigmoid")(gate)])


def build_keras_timnet(
    num_labels: int,
    num_blocks: int = 8,
    size: int = 39,
    kernel: int = 2,
    dropout: float = 0.1,
) -> keras.Model:
    """The paper's network: (batch, frames, 39) MFCCs → (batch, num_labels) logits."""
    inputs = keras.Input((None, size))
    forward = layers.Conv1D(size, 1)(inputs)
    backward = layers.Conv1D(size, 1)(layers.Lambda(lambda x: tf.reverse(x, axis=[1]))(inputs))
    scales = []
    for index in range(num_blocks):
        forward = _block(forward, size, kernel, 2**index, dropout)
        backward = _block(backward, size, kernel, 2**index, dropout)
        pooled = layers.GlobalAveragePooling1D()(layers.Add()([forward, backward]))
        scales.append(layers.Reshape((1, size))(pooled))
    fused = WeightedScales()(layers.Concatenate(axis=1)(scales))
    return keras.Model(inputs, layers.Dense(num_labels)(fused))


def scoring_graph(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network as a traced graph, for scoring."""
    return tf.function(lambda features: model(features, training=False))


def training_graph(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """One step of the paper's training as a traced graph: Adam, label smoothing 0.1."""
    optimizer = keras.optimizers.Adam(1e-3, beta_1=0.93, beta_2=0.98, epsilon=1e-8)
    optimizer.build(model.trainable_variables)
    criterion = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)

    @tf.function
    def step(features: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = criterion(targets, model(features, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


__all__ = ["build_keras_timnet", "scoring_graph", "training_graph"]
