"""What is added to a frozen backbone: routed LoRA experts and the autoencoders that route to them."""
