"""Evaluation: perplexity, GSM8K, and MATH and HumanEval through lm-eval.

What needs Transformers is in its modules, so that the training package imports without it.
"""
