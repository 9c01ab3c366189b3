"""``noise2map experiment ablation``: the published study's ablations (DDP, Tab. 5, Fig. 3) on features of a frozen encoder."""
