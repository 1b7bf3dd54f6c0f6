"""3-D convolutions whose gradients TensorFlow computes fast on a CPU.

TensorFlow hands the forward pass of a 3-D convolution to oneDNN, but its gradients to general code that takes five times as long for the
same multiplications. The same gradients can be had from operations that are fast: that of the input is a convolution of the output's
gradient with the kernel turned about, and that of the kernel is a matrix product for each of its places, or a sum of 2-D ones.
"""

import keras

# From so many voxels a plane on, matrix products of whole volumes beat 2-D convolutions of their planes (measured on two cores, AVX2).
_LARGE_PLANE = 48 * 48


def speed_up_gradients(network: keras.Model) -> int:
    """Lets the 3-D convolutions of a network use the gradients of this module, where they are faster: TensorFlow without a GPU.

    Layers keep their class, weights and configuration: what is saved is not changed by it.

    Returns:
        How many layers do.
    """
    if keras.backend.backend() != "tensorflow":
        return 0
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return 0
    changed = 0
    for layer in network.layers:
        if _fits(layer):
            # The hook that Keras gives to subclasses; a subclass of ours would have to come along with every saved model.
            layer.convolution_op = lambda inputs, kernel: convolve(inputs, tf.convert_to_tensor(kernel))
            changed += 1
    return changed


def _fits(layer: keras.Layer) -> bool:
    """Whether it is a convolution of stride 1 that keeps the size, of 3x3x3 or 1x1x1 voxels, in float32."""
    return (
        isinstance(layer, keras.layers.Conv3D)
        and layer.kernel_size in ((3, 3, 3), (1, 1, 1))
        and layer.strides == layer.dilation_rate == (1, 1, 1)
        and (layer.padding == "same" or layer.kernel_size == (1, 1, 1))
        and (layer.groups, layer.data_format) == (1, "channels_last")
        and layer.compute_dtype == "float32"
    )


def convolve(image, kernel):
    """`tf.nn.conv3d` of stride 1 that keeps the size, with fast gradients.

    Args:
        image: `(B, *P, I)` float32 tensor.
        kernel: `(3, 3, 3, I, O)` or `(1, 1, 1, I, O)` float32 tensor.

    Returns:
        `(B, *P, O)`.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def compute(image, kernel):
        def differentiate(upstream):
            turned = tf.transpose(tf.reverse(kernel, (0, 1, 2)), (0, 1, 2, 4, 3))
            return tf.nn.conv3d(upstream, turned, (1,) * 5, "SAME"), _differentiate_kernel(image, kernel.shape, upstream)

        return tf.nn.conv3d(image, kernel, (1,) * 5, "SAME"), differentiate

    return compute(image, kernel)


def _differentiate_kernel(image, shape, upstream):
    """The gradient of a kernel of `shape`."""
    import tensorflow as tf

    depth, rows, columns = image.shape[1:4]
    if shape[0] == 1:
        return tf.reshape(tf.matmul(_flatten(image), _flatten(upstream), transpose_a=True), shape)
    if rows * columns < _LARGE_PLANE:
        padded = tf.pad(image, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        planes = [
            tf.raw_ops.Conv2DBackpropFilter(
                input=tf.reshape(padded[:, place : place + depth], (-1, rows, columns, shape[3])),
                filter_sizes=shape[1:],
                out_backprop=tf.reshape(upstream, (-1, rows, columns, shape[4])),
                strides=(1,) * 4,
                padding="SAME",
            )
            for place in range(3)
        ]
        return tf.stack(planes)
    # With a border of zeros around both, a shift along all three axes is one along the flattened voxels: what runs over the end of a
    # row meets zeros.
    border = ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))
    image, upstream = _flatten(tf.pad(image, border)), _flatten(tf.pad(upstream, border))
    row, plane = columns + 2, (rows + 2) * (columns + 2)
    margin, last = plane + row + 1, tf.shape(image)[0] - (plane + row + 1)
    middle = upstream[margin:last]
    shifts = [plane * i + row * j + k for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    return tf.reshape(tf.stack([tf.matmul(image[margin + by : last + by], middle, transpose_a=True) for by in shifts]), shape)


def _flatten(array):
    """`(voxels of the whole batch, channels)`."""
    import tensorflow as tf

    return tf.reshape(array, (-1, array.shape[-1]))
