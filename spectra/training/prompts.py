"""The prompts of the SORSA paper (arXiv 2409.00055, Appendix B, Listing 1)."""

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n"
    "### Response: Lets think step by step."
)
"""Listing 1, for training and for GSM8K and MATH; ``{question}`` is the only field."""
