"""The papers that the files of `methods/` link to, as a list of references states them."""

from __future__ import annotations

# Link (`Method.paper`) -> reference.
REFERENCES = {
    "https://arxiv.org/abs/2506.11672": (
        "C. Ge, X. Wang, Z. Zhang, H. Chen, J. Fan, L. Huang, H. Xue, W. Zhu. Dynamic Mixture of Curriculum LoRA Experts for "
        "Continual Multimodal Instruction Tuning. ICML 2025. arXiv:2506.11672"
    ),
    "https://arxiv.org/abs/1606.09282": "Z. Li, D. Hoiem. Learning without Forgetting. ECCV 2016. arXiv:1606.09282",
    "https://arxiv.org/abs/1612.00796": (
        "J. Kirkpatrick et al. Overcoming catastrophic forgetting in neural networks. PNAS 114 (13), 2017. arXiv:1612.00796"
    ),
    "https://arxiv.org/abs/1902.10486": (
        "A. Chaudhry et al. On Tiny Episodic Memories in Continual Learning. 2019. arXiv:1902.10486"
    ),
    "https://arxiv.org/abs/2310.14152": (
        "X. Wang et al. Orthogonal Subspace Learning for Language Model Continual Learning. Findings of EMNLP 2023. "
        "arXiv:2310.14152"
    ),
    "https://arxiv.org/abs/2403.08350": (
        "C. Chen et al. CoIN: A Benchmark of Continual Instruction tuNing for Multimodel Large Language Model. 2024. "
        "arXiv:2403.08350"
    ),
    "https://arxiv.org/abs/2411.13949": (
        "Z. Wang, C. Che, Q. Wang, Y. Li, Z. Shi, M. Wang. SMoLoRA: Exploring and Defying Dual Catastrophic Forgetting in "
        "Continual Visual Instruction Tuning. ICCV 2025. arXiv:2411.13949"
    ),
    "https://arxiv.org/abs/2503.12941": (
        "H. Guo et al. HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal Large Language Model. "
        "ACL 2025. arXiv:2503.12941"
    ),
    "https://arxiv.org/abs/2505.02486": (
        "J. Chen, R. Cong, Y. Zhao, H. Yang, G. Hu, H. H. S. Ip, S. Kwong. SEFE: Superficial and Essential Forgetting "
        "Eliminator for Multimodal Continual Instruction Tuning. ICML 2025. arXiv:2505.02486"
    ),
}


def reference_of(paper: str) -> str:
    """The reference of a paper, or the link itself where it is not listed."""
    return REFERENCES.get(paper, paper)
