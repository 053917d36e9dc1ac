"""Model compression: fewer weights, fewer bits a weight, or a smaller network taught by a
larger.

Pruning functions return masks and leave the model alone; `apply_masks` makes them last.
Quantizers map floats to whole numbers that fit in 2, 4 or 8 bits, and `pack_bits` puts
those into bytes.
"""

from dlcourse.model_compression.distillation import distillation_loss
from dlcourse.model_compression.layers import QUANTIZABLE
from dlcourse.model_compression.low_rank import factorize, low_rank_factors
from dlcourse.model_compression.pruning import (
    Masks,
    apply_masks,
    bake,
    global_prune,
    gradual_sparsity,
    magnitude_mask,
    magnitude_prune,
    n_m_mask,
    prune_n_m,
    prune_units,
    pruning_step,
    saliency_prune,
    sparsity,
    unit_mask,
)
from dlcourse.model_compression.quantization import (
    choose_qparams,
    dequantize,
    pack_bits,
    qparams_from_range,
    quant_range,
    quantize,
    unpack_bits,
)
from dlcourse.model_compression.quantized_layers import (
    FakeQuantize,
    QATConv2d,
    QATLinear,
    QuantizedConv2d,
    QuantizedLinear,
    RangeObserver,
    calibrate,
    convert,
    fake_quantize,
    prepare_qat,
    quantize_model,
)
from dlcourse.model_compression.size import load_compact, model_size, save_compact

__all__ = [
    "Masks",
    "apply_masks",
    "bake",
    "global_prune",
    "gradual_sparsity",
    "magnitude_mask",
    "magnitude_prune",
    "n_m_mask",
    "prune_n_m",
    "prune_units",
    "pruning_step",
    "saliency_prune",
    "sparsity",
    "unit_mask",
    "QUANTIZABLE",
    "choose_qparams",
    "dequantize",
    "pack_bits",
    "qparams_from_range",
    "quant_range",
    "quantize",
    "unpack_bits",
    "FakeQuantize",
    "QATConv2d",
    "QATLinear",
    "QuantizedConv2d",
    "QuantizedLinear",
    "RangeObserver",
    "calibrate",
    "convert",
    "fake_quantize",
    "prepare_qat",
    "quantize_model",
    "distillation_loss",
    "factorize",
    "low_rank_factors",
    "load_compact",
    "model_size",
    "save_compact",
]
