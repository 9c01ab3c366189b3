"""A kernel for each class that is rewritten from the region it has found, after K-Net (Zhang et al. 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise2map.models.configuration import Noise2MapConfig

_STAGES = 3  # of the published head


class KernelUpdate(nn.Module):
    """One stage: kernels gather the features of their regions, are mixed with them by gates, and look at one another.

    Args:
        config: sizes; heads and inner width are those of the map decoder.
    """

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.region_in, self.kernel_in = nn.Linear(size, 2 * size), nn.Linear(size, 2 * size)
        self.region_gate, self.kernel_gate = nn.Linear(size, size), nn.Linear(size, size)
        self.gate_norms = nn.ModuleList(nn.LayerNorm(size, eps=eps) for _ in range(2))
        self.mix_norms = nn.ModuleList(nn.LayerNorm(size, eps=eps) for _ in range(2))
        self.heads = config.decoder_attention_heads
        self.attention_in, self.attention_out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps=eps)
        self.linear_in, self.linear_out = nn.Linear(size, config.decoder_ffn_dim), nn.Linear(config.decoder_ffn_dim, size)
        self.ffn_norm = nn.LayerNorm(size, eps=eps)
        self.mask = nn.Linear(size, size)

    def forward(self, kernels: Tensor, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """A stage.

        Args:
            kernels: one for each class ``(B, K, C)``.
            logits: what they say of the cells ``(B, h*w, K)``.
            tokens: the cells ``(B, h*w, C)``.

        Returns:
            New kernels and new logits, of the same shapes.
        """
        masks = logits.float().softmax(-1)
        # Means, not sums as published: a region counts the same in a window and in a whole image, and half precision holds it.
        shares = masks / masks.sum(1, keepdim=True).clamp(min=1e-6)
        regions = shares.to(tokens.dtype).transpose(1, 2) @ tokens  # (B, K, C)
        kernels = self._interact(self._mix(kernels, regions))
        return kernels, tokens @ self.mask(kernels).transpose(1, 2) / tokens.shape[-1] ** 0.5

    def _mix(self, kernels: Tensor, regions: Tensor) -> Tensor:
        """Adaptive kernel update: gates from the product of both decide how much of each is kept."""
        region, region_value = self.region_in(regions).chunk(2, -1)
        kernel, kernel_value = self.kernel_in(kernels).chunk(2, -1)
        product = region * kernel
        keep_region = self.gate_norms[0](self.region_gate(product)).sigmoid()
        keep_kernel = self.gate_norms[1](self.kernel_gate(product)).sigmoid()
        return keep_region * self.mix_norms[0](region_value) + keep_kernel * self.mix_norms[1](kernel_value)

    def _interact(self, kernels: Tensor) -> Tensor:
        """Kernel interaction: self-attention and a feed-forward block over the classes, post-norm."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attention_in(kernels).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        kernels = self.attention_norm(kernels + self.attention_out(mixed))
        return self.ffn_norm(kernels + self.linear_out(functional.relu(self.linear_in(kernels))))


class KernelUpdateHead(nn.Module):
    """Class scores of tokens by learnt kernels in three stages.

    K-Net's loss on the masks of every stage is left out: the model states one map.
    """

    def __init__(self, config: Noise2MapConfig) -> None:
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.stages = nn.ModuleList(KernelUpdate(config) for _ in range(_STAGES))
        self.config = config  # its temperature may be set later

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``(B, h*w, C)`` -> logits ``(B, K, h, w)``, divided by the temperature, float32 or better."""
        logits = self.classifier(tokens)
        kernels = self.classifier.weight.expand(len(tokens), -1, -1)
        for stage in self.stages:
            kernels, logits = stage(kernels, logits, tokens)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.config.temperature
        return logits.transpose(1, 2).unflatten(2, size)
