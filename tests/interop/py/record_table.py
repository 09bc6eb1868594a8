"""The table of record_case.py: tiny models, and one line a case."""

SIZES = {"width": 17, "short": 12, "target": 9}
VOCAB = 96

# Sizes that most families share; a case may override any of them.
DECODER = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, pad_token_id=None, bos_token_id=1,
    eos_token_id=2, tie_word_embeddings=False,
)
ENCODER = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
)
ROBERTA = dict(ENCODER, pad_token_id=1, type_vocab_size=1, bos_token_id=0, eos_token_id=2)
DISTIL = dict(
    vocab_size=VOCAB, dim=32, hidden_dim=56, n_layers=2, n_heads=4, max_position_embeddings=40, dropout=0.0,
    attention_dropout=0.0, seq_classif_dropout=0.0, num_labels=3,
)
MPNET = dict(ENCODER, pad_token_id=1, bos_token_id=0, eos_token_id=2)
T5 = dict(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=56, num_layers=2, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=0, pad_token_id=0,
)
BART = dict(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=56, max_position_embeddings=40, dropout=0.0,
    attention_dropout=0.0, activation_dropout=0.0, num_labels=3,
)
VIT = dict(
    hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
    num_channels=3, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
CLIP_TEXT = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=24, projection_dim=24, pad_token_id=1, bos_token_id=0, eos_token_id=VOCAB - 1,
)
CLIP_VISION = dict(
    hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
    projection_dim=24,
)
CLIP = dict(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=24, num_labels=5)
AST = dict(
    hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, patch_size=4, max_length=24,
    num_mel_bins=16, frequency_stride=3, time_stride=3, num_labels=5, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
WHISPER = dict(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=56, decoder_ffn_dim=56, num_mel_bins=8, max_source_positions=12,
    max_target_positions=24, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=3,
    suppress_tokens=None, begin_suppress_tokens=None,
)
NEOX = dict({key: value for key, value in DECODER.items() if key != "num_key_value_heads"}, rotary_pct=0.5)
GEMMA2 = dict(
    DECODER, head_dim=8, query_pre_attn_scalar=12, sliding_window=6, attn_logit_softcapping=3.0,
    final_logit_softcapping=4.0, tie_word_embeddings=True, pad_token_id=0,
)

# name: (model class, config class, settings)
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "llama-cls": ("LlamaForSequenceClassification", "LlamaConfig", dict(DECODER, pad_token_id=0, num_labels=3)),
    "mistral": ("MistralForCausalLM", "MistralConfig", dict(DECODER, sliding_window=6)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", dict(DECODER, head_dim=12)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA2),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", DECODER),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        dict(vocab_size=VOCAB, n_positions=40, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
             attn_pdrop=0.0, bos_token_id=1, eos_token_id=2),
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", dict(DECODER, num_local_experts=4, num_experts_per_tok=2)
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", ENCODER),
    "bert-token": ("BertForTokenClassification", "BertConfig", ENCODER),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", ENCODER),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", ROBERTA),
    "roberta-token": ("RobertaForTokenClassification", "RobertaConfig", ROBERTA),
    "roberta-mlm": ("RobertaForMaskedLM", "RobertaConfig", ROBERTA),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", ROBERTA),
    "xlm-roberta-token": ("XLMRobertaForTokenClassification", "XLMRobertaConfig", ROBERTA),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL),
    "distilbert-token": ("DistilBertForTokenClassification", "DistilBertConfig", DISTIL),
    "distilbert-mlm": ("DistilBertForMaskedLM", "DistilBertConfig", DISTIL),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", MPNET),
    "mpnet-token": ("MPNetForTokenClassification", "MPNetConfig", MPNET),
    "mpnet-mlm": ("MPNetForMaskedLM", "MPNetConfig", MPNET),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT),
    "clip": ("CLIPModel", "CLIPConfig", CLIP),
    "clip-cls": ("CLIPForImageClassification", "CLIPConfig", CLIP),
    "ast": ("ASTForAudioClassification", "ASTConfig", AST),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
}


def task_of(model):
    """(task, options for the batches) that a model's class implies."""
    name = MODELS[model][0]
    for suffix, task, feed in (
        ("ForCausalLM", "CAUSAL_LM", "tokens"),
        ("LMHeadModel", "CAUSAL_LM", "tokens"),
        ("ForSequenceClassification", "SEQ_CLS", "tokens"),
        ("ForTokenClassification", "TOKEN_CLS", "tokens"),
        ("ForMaskedLM", "MASKED_LM", "tokens"),
        ("ForImageClassification", "IMAGE_CLS", "pixels"),
        ("ForAudioClassification", "AUDIO_CLS", "spectrogram"),
        ("CLIPModel", "CONTRASTIVE", "both"),
        ("ForConditionalGeneration", "SEQ_2_SEQ_LM", "features" if model == "whisper" else "tokens"),
    ):
        if name.endswith(suffix):
            return task, {"feed": feed}
    raise KeyError(name)


CASES = {}


def case(name, model, kind, config=None, options=None, **adapter):
    """One line of the table: the model with `config` over its settings, PEFT's `kind`Config with `adapter`."""
    task, implied = task_of(model)
    CASES[name] = dict(
        model=model, config=config or {}, task=task, options={**implied, **(options or {})},
        adapter=dict(kind=f"{kind}Config", **adapter),
    )


QV, ALL = ["q_proj", "v_proj"], "all-linear"
MLP = ["gate_proj", "up_proj", "down_proj"]
HALF = dict(r=4, lora_alpha=8)

# Families, each with LoRA at every linear layer (all-linear leaves out the head).
case("llama-all", "llama", "Lora", **HALF, target_modules=ALL)
case("llama-tied", "llama", "Lora", dict(tie_word_embeddings=True), **HALF, target_modules=ALL)
case("llama-biased", "llama", "Lora", dict(attention_bias=True, mlp_bias=True), **HALF, target_modules=ALL)
case("llama-gelu", "llama", "Lora", dict(hidden_act="gelu_pytorch_tanh"), **HALF, target_modules=ALL)
case("llama-cls", "llama-cls", "Lora", **HALF, target_modules=QV)


def rope(kind, **settings):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=10000.0, **settings))


case("llama-rope-linear", "llama", "Lora", rope("linear", factor=3.0), **HALF, target_modules=QV)
case("llama-rope-dynamic", "llama", "Lora", dict(rope("dynamic", factor=3.0), max_position_embeddings=10), **HALF,
     target_modules=QV)
case("llama-rope-llama3", "llama", "Lora", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
     original_max_position_embeddings=16), **HALF, target_modules=QV)
case("llama-rope-yarn", "llama", "Lora", rope("yarn", factor=4.0, original_max_position_embeddings=16), **HALF,
     target_modules=QV)
case("llama-rope-yarn-mscale", "llama", "Lora", rope("yarn", factor=4.0, original_max_position_embeddings=16,
     beta_fast=16.0, beta_slow=2.0, mscale=0.8, mscale_all_dim=0.5), **HALF, target_modules=QV)
case("llama-rope-theta", "llama", "Lora", rope("default") | dict(head_dim=12), **HALF, target_modules=QV)
case("mistral-window", "mistral", "Lora", **HALF, target_modules=ALL)
case("mistral-full", "mistral", "Lora", dict(sliding_window=None), **HALF, target_modules=QV)
case("qwen2-all", "qwen2", "Lora", **HALF, target_modules=ALL)
case("qwen2-window", "qwen2", "Lora", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1), **HALF,
     target_modules=QV)
case("qwen3-all", "qwen3", "Lora", **HALF, target_modules=ALL)
case("gemma2-all", "gemma2", "Lora", **HALF, target_modules=ALL)
case("gemma2-qv", "gemma2", "Lora", dict(head_dim=16, attn_logit_softcapping=None), **HALF, target_modules=QV)
case("gemma2-embedding", "gemma2", "Lora", **HALF, target_modules=["embed_tokens", "q_proj"])
case("phi3-all", "phi3", "Lora", **HALF, target_modules=ALL)
case("phi3-window", "phi3", "Lora", dict(sliding_window=5), **HALF, target_modules=["qkv_proj", "gate_up_proj"])
case("phi3-longrope", "phi3", "Lora", dict(
    max_position_embeddings=64, original_max_position_embeddings=10, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.0, 1.7, 2.5, 4.0],
        original_max_position_embeddings=10)), **HALF, target_modules=["qkv_proj"])
case("phi3-partial", "phi3", "Lora", dict(rope_parameters=dict(
    rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)), **HALF, target_modules=["o_proj"])
case("gpt2-all", "gpt2", "Lora", **HALF, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
case("gpt2-scaled", "gpt2", "Lora", dict(scale_attn_by_inverse_layer_idx=True, activation_function="gelu"), **HALF,
     target_modules=["c_attn"], fan_in_fan_out=True)
case("gpt_neox-all", "gpt_neox", "Lora", **HALF, target_modules=ALL)
case("gpt_neox-serial", "gpt_neox", "Lora", dict(use_parallel_residual=False, rotary_pct=0.25), **HALF,
     target_modules=["query_key_value"])
case("mixtral-qv", "mixtral", "Lora", **HALF, target_modules=QV)
case("mixtral-window", "mixtral", "Lora", dict(sliding_window=6), **HALF, target_modules=["k_proj", "o_proj"])
case("mixtral-parameters", "mixtral", "Lora", **HALF, target_modules=["q_proj"],
     target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
case("mixtral-experts", "mixtral", "Lora", dict(num_hidden_layers=1), **HALF, target_modules=["q_proj"],
     target_parameters=["gate.weight", "experts.gate_up_proj", "experts.down_proj"])
case("mixtral-parameter", "mixtral", "Lora", **HALF, target_modules=[],
     target_parameters=["mlp.experts.gate_up_proj"])

for encoder in ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet"):
    names = {"distilbert": ["q_lin", "v_lin"], "mpnet": ["attn.q", "attn.v"]}.get(encoder, ["query", "value"])
    case(f"{encoder}-all", encoder, "Lora", **HALF, target_modules={
        "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]}.get(encoder, ALL))
    case(f"{encoder}-token", f"{encoder}-token", "Lora", **HALF, target_modules=names)
    if f"{encoder}-mlm" in MODELS:
        case(f"{encoder}-mlm", f"{encoder}-mlm", "Lora", **HALF, target_modules=names)

ATTENTION = ["q", "k", "v", "o"]
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
case("t5-all", "t5", "Lora", **HALF, target_modules=ALL)
case("t5-gated", "t5", "Lora", GATED, dict(ragged=True), **HALF, target_modules=[*ATTENTION, "wi_0", "wi_1", "wo"])
case("bart-all", "bart", "Lora", **HALF, target_modules=ALL)
case("bart-scaled", "bart", "Lora", dict(scale_embedding=True, activation_function="relu"), dict(ragged=True), **HALF,
     target_modules=QV)
case("vit-all", "vit", "Lora", **HALF, target_modules=ALL, modules_to_save=["classifier"])
case("vit-norm", "vit", "LNTuning", target_modules=r".*layernorm.*", modules_to_save=["classifier"])
case("clip-all", "clip", "Lora", **HALF, target_modules=["q_proj", "v_proj", "fc1", "fc2"])
case("clip-cls", "clip-cls", "Lora", **HALF, target_modules=QV, modules_to_save=["classifier"])
case("ast-all", "ast", "Lora", **HALF, target_modules=ALL)
case("whisper-all", "whisper", "Lora", **HALF, target_modules=[*QV, "k_proj", "out_proj", "fc1", "fc2"])
case("whisper-qv", "whisper", "Lora", dict(scale_embedding=True), dict(ragged=True), **HALF, target_modules=QV)

# LoRA's options.
case("lora-rslora", "llama", "Lora", r=4, lora_alpha=8, use_rslora=True, target_modules=ALL)
case("lora-dora", "llama", "Lora", **HALF, use_dora=True, target_modules=ALL)
case("lora-dora-gpt2", "gpt2", "Lora", **HALF, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
case("lora-dora-rslora-saved", "llama", "Lora", r=4, lora_alpha=6, use_dora=True, use_rslora=True, target_modules=QV,
     modules_to_save=["lm_head"])
case("lora-dora-bert-saved", "bert", "Lora", r=4, lora_alpha=6, use_dora=True, use_rslora=True,
     target_modules=["query", "dense"], exclude_modules=["classifier"])
case("lora-dora-embedding", "llama", "Lora", **HALF, use_dora=True, target_modules=["embed_tokens", "q_proj"])
case("lora-bias-all", "bert", "Lora", **HALF, bias="all", target_modules=["query", "value"])
case("lora-bias-only", "bert", "Lora", **HALF, bias="lora_only", target_modules=["query", "value"])
case("lora-bias-all-gpt2", "gpt2", "Lora", **HALF, bias="all", target_modules=["c_attn"], fan_in_fan_out=True)
case("lora-bias-only-qwen2", "qwen2", "Lora", **HALF, bias="lora_only", target_modules=QV)
case("lora-lora-bias", "bert", "Lora", **HALF, lora_bias=True, target_modules=["query", "value"])
case("lora-patterns", "llama", "Lora", **HALF, target_modules=ALL, rank_pattern={"down_proj": 2, "layers.1.*q_proj": 6},
     alpha_pattern={"down_proj": 6, "^model.layers.0.mlp.up_proj": 3})
case("lora-layers", "llama", "Lora", **HALF, target_modules=QV, layers_to_transform=[1], layers_pattern="layers")
case("lora-layer", "llama", "Lora", **HALF, target_modules=QV, layers_to_transform=0)
case("lora-exclude", "llama", "Lora", **HALF, target_modules=ALL, exclude_modules=["down_proj", "layers.0.mlp.up_proj"])
case("lora-regex", "llama", "Lora", **HALF, target_modules=r".*\.1\..*(q_proj|up_proj)")
case("lora-saved", "llama", "Lora", **HALF, target_modules=QV, modules_to_save=["lm_head", "embed_tokens"])
case("lora-saved-norm", "llama", "Lora", **HALF, target_modules=QV, modules_to_save=["input_layernorm"])
case("lora-embedding", "llama", "Lora", **HALF, target_modules=["embed_tokens", "q_proj"])
case("lora-head", "llama", "Lora", **HALF, target_modules=["lm_head", "q_proj"])
case("lora-embedding-tied", "llama", "Lora", dict(tie_word_embeddings=True), **HALF, target_modules=["embed_tokens"])
case("lora-tokens", "llama", "Lora", **HALF, target_modules=QV, trainable_token_indices=[5, 17, 40])
case("lora-tokens-tied", "llama", "Lora", dict(tie_word_embeddings=True), **HALF, target_modules=QV,
     trainable_token_indices=[5, 17, 40])
case("lora-gaussian", "llama", "Lora", **HALF, init_lora_weights="gaussian", target_modules=QV)
case("lora-pissa", "llama", "Lora", **HALF, init_lora_weights="pissa", target_modules=QV)
case("lora-olora", "llama", "Lora", **HALF, init_lora_weights="olora", target_modules=QV)
case("lora-orthogonal", "llama", "Lora", **HALF, init_lora_weights="orthogonal", target_modules=QV)
case("lora-pissa-gpt2", "gpt2", "Lora", **HALF, init_lora_weights="pissa", target_modules=["c_attn"],
     fan_in_fan_out=True)
case("lora-conv-vit", "vit", "Lora", **HALF, target_modules=["projection", "q_proj"], modules_to_save=["classifier"])
case("lora-dora-vit", "vit", "Lora", **HALF, use_dora=True, target_modules=QV, modules_to_save=["classifier"])
case("lora-dora-conv", "vit", "Lora", dict(num_hidden_layers=1), **HALF, use_dora=True,
     target_modules=["projection", "q_proj"], modules_to_save=["classifier"])
case("lora-bias-all-dora-saved", "roberta", "Lora", dict(num_hidden_layers=1), **HALF, use_dora=True, bias="all",
     target_modules=["value"], modules_to_save=["classifier"])
case("lora-saved-mlm", "bert-mlm", "Lora", dict(num_hidden_layers=1), **HALF, target_modules=["query"],
     modules_to_save=["cls"])
case("lora-dora-t5", "t5", "Lora", **HALF, use_dora=True, use_rslora=True, target_modules=["q", "wo"])

# The other methods, over the families whose parts differ.
TARGETS = {
    "llama": QV, "gpt2": ["c_attn", "c_fc"], "bert": ["query", "value"], "t5": ["q", "v", "wo"], "vit": QV,
    "bart": ["k_proj", "fc1"], "mistral": ["q_proj", "down_proj"],
}
CONV1D = ("gpt2",)


def across(method, kind, models, feedforward=None, fan_in_fan_out=False, **adapter):
    """The method at each model's usual targets."""
    for model in models:
        options = dict(adapter, target_modules=TARGETS[model])
        if feedforward:
            options |= dict(target_modules=feedforward[model][0], feedforward_modules=feedforward[model][1])
        if fan_in_fan_out and model in CONV1D:
            options["fan_in_fan_out"] = True
        if model == "vit":
            options["modules_to_save"] = ["classifier"]
        case(f"{method}-{model}", model, kind, **options)


IA3 = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
    "t5": (["k", "v", "wo"], ["wo"]),
    "vit": (["k_proj", "v_proj", "fc2"], ["fc2"]),
    "bart": (["k_proj", "v_proj", "fc2"], ["fc2"]),
}
WIDE = ("llama", "bert", "t5", "vit")
across("ia3", "IA3", IA3, feedforward=IA3, fan_in_fan_out=True)
case("ia3-default-gpt2", "gpt2", "IA3")
across("vera", "Vera", ("llama", "bert"), r=8)
case("vera-mixed", "llama", "Vera", r=6, target_modules=["q_proj", "v_proj", "down_proj"], d_initial=0.3)
case("vera-unsaved", "llama", "Vera", r=6, target_modules=QV, save_projection=False, projection_prng_key=7)
case("vera-gpt2", "gpt2", "Vera", r=6, target_modules=["c_attn"], fan_in_fan_out=True)
across("loha", "LoHa", WIDE, r=4, alpha=6)
case("loha-conv-vit", "vit", "LoHa", r=4, alpha=6, target_modules=["projection", "q_proj"],
     use_effective_conv2d=True, modules_to_save=["classifier"])
across("lokr", "LoKr", WIDE, r=4, alpha=6)
case("lokr-factor", "llama", "LoKr", r=2, alpha=6, target_modules=QV, decompose_factor=4, decompose_both=True)
case("lokr-full", "llama", "LoKr", r=64, alpha=6, target_modules=QV)
case("lokr-patterns", "llama", "LoKr", r=4, alpha=6, target_modules=ALL, rank_pattern={"down_proj": 2},
     alpha_pattern={"up_proj": 3})
across("oft", "OFT", WIDE, r=0, oft_block_size=8)
case("oft-rank", "llama", "OFT", r=4, oft_block_size=0, target_modules=QV)
case("oft-coft", "llama", "OFT", r=4, oft_block_size=0, coft=True, eps=1e-2, target_modules=QV)
case("oft-shared", "llama", "OFT", r=4, oft_block_size=0, block_share=True, target_modules=QV)
case("oft-exact", "llama", "OFT", r=4, oft_block_size=0, use_cayley_neumann=False, target_modules=QV)
case("oft-bias", "bert", "OFT", r=0, oft_block_size=8, target_modules=["query", "value"], bias="oft_only")
across("boft", "BOFT", WIDE, boft_block_size=4, boft_n_butterfly_factor=2)
case("boft-one", "llama", "BOFT", boft_block_size=8, boft_n_butterfly_factor=1, target_modules=QV)
case("boft-number", "llama", "BOFT", boft_block_size=0, boft_block_num=4, target_modules=ALL)
case("boft-bias", "bert", "BOFT", boft_block_size=4, target_modules=["query", "value"], bias="boft_only")
across("fourierft", "FourierFT", ("llama", "gpt2", "bert", "t5", "vit"), fan_in_fan_out=True, n_frequency=60,
       scaling=30.0)
across("hra", "HRA", WIDE, r=4)
case("hra-gs", "llama", "HRA", r=4, apply_GS=True, target_modules=QV)
case("hra-odd", "llama", "HRA", r=3, target_modules=QV)
across("randlora", "RandLora", ("llama", "bert", "t5"), r=6, randlora_alpha=12)
case("randlora-mixed", "llama", "RandLora", r=6, randlora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"])
case("randlora-sparse", "llama", "RandLora", r=6, randlora_alpha=12, target_modules=QV, sparse=True)
case("randlora-very-sparse", "llama", "RandLora", r=6, randlora_alpha=12, target_modules=QV, very_sparse=True)
case("randlora-gpt2", "gpt2", "RandLora", r=6, randlora_alpha=12, target_modules=["c_attn"], fan_in_fan_out=True)
ADALORA = dict(init_r=6, target_r=3, lora_alpha=8, total_step=12, tinit=2, tfinal=3, deltaT=2)
across("adalora", "AdaLora", ("llama", "gpt2", "bert", "t5"), fan_in_fan_out=True, **ADALORA)
case("adalora-ast", "ast", "AdaLora", dict(num_hidden_layers=1), target_modules=["q_proj", "fc1"], **ADALORA)
case("adalora-allocates", "llama", "AdaLora", options=dict(allocates=True), target_modules=ALL, **ADALORA)
for model in ("llama", "gpt2", "qwen2", "gpt_neox", "mistral", "bert", "roberta", "t5", "bart"):
    case(f"prefix-{model}", model, "PrefixTuning", num_virtual_tokens=5)
    case(f"prompt-{model}", model, "PromptTuning", num_virtual_tokens=4)
for model in ("llama", "bert", "t5"):
    case(f"prefix-projected-{model}", model, "PrefixTuning", num_virtual_tokens=5, prefix_projection=True,
         encoder_hidden_size=20)
    case(f"p_tuning-{model}", model, "PromptEncoder", num_virtual_tokens=4, encoder_hidden_size=20)
case("p_tuning-lstm", "llama", "PromptEncoder", num_virtual_tokens=4, encoder_hidden_size=20,
     encoder_reparameterization_type="LSTM", encoder_num_layers=2, encoder_dropout=0.0)
for model in ("xlm-roberta", "mpnet"):
    case(f"prompt-{model}", model, "PromptTuning", num_virtual_tokens=4)
case("prefix-bert-token", "bert-token", "PrefixTuning", num_virtual_tokens=5)
for model in ("llama", "gpt2", "t5", "bart"):
    case(f"norm-{model}", model, "LNTuning")
case("norm-bert", "bert", "LNTuning", target_modules=["LayerNorm"])
case("norm-some", "llama", "LNTuning", target_modules=["post_attention_layernorm", "norm"])
case("tokens-llama", "llama", "TrainableTokens", token_indices=[5, 17, 40])
case("tokens-tied", "llama", "TrainableTokens", dict(tie_word_embeddings=True), token_indices=[5, 17, 40])
case("tokens-gpt2", "gpt2", "TrainableTokens", token_indices=[5, 17, 40], target_modules=["wte"])
case("tokens-bert", "bert", "TrainableTokens", token_indices=[5, 17, 40], target_modules=["word_embeddings"])
case("tokens-gemma2", "gemma2", "TrainableTokens", token_indices=[5, 17, 40])
case("tokens-t5", "t5", "TrainableTokens", token_indices=[5, 17, 40])
case("tokens-two", "gpt2", "TrainableTokens", dict(tie_word_embeddings=False), token_indices=[5, 17],
     target_modules=["wte", "wpe"])
for model in ("gemma2", "qwen3", "phi3", "mixtral", "llama-cls"):
    case(f"prefix-{model}", model, "PrefixTuning", num_virtual_tokens=5)
for model in ("gemma2", "phi3"):
    case(f"prompt-{model}", model, "PromptTuning", num_virtual_tokens=4)
case("prompt-distilbert", "distilbert", "PromptTuning", num_virtual_tokens=4, token_dim=32, num_layers=2,
     num_attention_heads=4)
case("prompt-vocabulary", "llama", "PromptTuning", num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB")
case("prefix-saved", "llama", "PrefixTuning", num_virtual_tokens=5, init_weights="zero", modules_to_save=["lm_head"])
case("norm-gemma2", "gemma2", "LNTuning")
case("norm-qwen3", "qwen3", "LNTuning", target_modules=["post_attention_layernorm", "q_norm", "k_norm", "norm"])
case("norm-roberta", "roberta", "LNTuning", target_modules=["LayerNorm"], exclude_modules=["embeddings.LayerNorm"])
case("oft-mistral", "mistral", "OFT", r=0, oft_block_size=8, target_modules=ALL)
case("oft-terms", "bert", "OFT", r=0, oft_block_size=10, num_cayley_neumann_terms=3, target_modules=["query", "dense"],
     exclude_modules=["classifier"])
case("oft-head", "llama", "OFT", r=0, oft_block_size=8, target_modules=["lm_head", "down_proj"], layers_to_transform=[1])
