"""What the variables of other images mean here: SM_VLLM_*, SM_SGLANG_*, LMI's, TGI's, the Hub's and SageMaker's own."""
