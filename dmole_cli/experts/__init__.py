"""LoRA experts: attached to a frozen backbone, routed per sample, merged into weights, exchanged with PEFT."""
