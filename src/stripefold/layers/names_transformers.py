"""The transformers classes behind each rule, read from the sources of transformers 5 (``model.Class``).

A class that is missing here is refused with the way to register it; one that changes its formula is refused by the
probe.
"""

from __future__ import annotations

LAST_AXIS = """
afmoe.AfmoeRMSNorm aimv2.Aimv2RMSNorm apertus.ApertusRMSNorm arcee.ArceeRMSNorm aria.AriaTextRMSNorm axk1.AXK1RMSNorm
axk2.AXK2RMSNorm bailing_hybrid.BailingHybridRMSNorm bamba.BambaRMSNorm beam.BeamRMSNorm bitnet.BitNetRMSNorm
blt.BltRMSNorm chameleon.ChameleonLayerNorm chameleon.ChameleonRMSNorm clvp.ClvpRMSNorm cohere2_moe.Cohere2MoeRMSNorm
cosmos3_edge.Cosmos3EdgeTextRMSNorm cpmant.CpmAntLayerNorm csm.CsmRMSNorm cwm.CwmRMSNorm deberta.DebertaLayerNorm
deepseek_ocr2.DeepseekOcr2TextRMSNorm deepseek_ocr2.DeepseekOcr2VisionRMSNorm deepseek_v2.DeepseekV2RMSNorm
deepseek_v3.DeepseekV3RMSNorm deepseek_v32.DeepseekV32RMSNorm deepseek_v4.DeepseekV4RMSNorm deimv2.Deimv2RMSNorm
dia.DiaRMSNorm diffllama.DiffLlamaRMSNorm doge.DogeRMSNorm dots1.Dots1RMSNorm dots3_note.Dots3NoteRMSNorm
emu3.Emu3RMSNorm ernie4_5.Ernie4_5RMSNorm ernie4_5_moe.Ernie4_5_MoeRMSNorm ernie4_5_vl_moe.Ernie4_5_VLMoeRMSNorm
esmc.EsmcLayerNorm eurobert.EuroBertRMSNorm evolla.EvollaRMSNorm exaone4.Exaone4RMSNorm exaone4_5.Exaone4_5_RMSNorm
exaone_moe.ExaoneMoeRMSNorm falcon_h1.FalconH1RMSNorm falcon_mamba.FalconMambaRMSNorm flex_olmo.FlexOlmoRMSNorm
flint.FlintRMSNorm glm.GlmRMSNorm glm4.Glm4RMSNorm glm4_moe.Glm4MoeRMSNorm
glm4_moe_lite.Glm4MoeLiteRMSNorm glm4v.Glm4vRMSNorm glm4v_moe.Glm4vMoeRMSNorm glm4v_moe.Glm4vMoeTextRMSNorm
glm5_next.Glm5NextRMSNorm glm5_next.Glm5NextTextRMSNorm glm_image.GlmImageRMSNorm glm_moe_dsa.GlmMoeDsaRMSNorm
glm_ocr.GlmOcrRMSNorm gpt_oss.GptOssRMSNorm gradium_phonon_tts.GradiumPhononTTSFlowLayerNorm
gradium_phonon_tts.GradiumPhononTTSTimestepNorm granite.GraniteRMSNorm granite4_vision.Granite4VisionTextRMSNorm
granite_docling.GraniteDoclingTextRMSNorm granite_swa.GraniteSWARMSNorm granitemoe.GraniteMoeRMSNorm
granitemoe_swa.GraniteMoeSWARMSNorm granitemoehybrid.GraniteMoeHybridRMSNorm granitemoeshared.GraniteMoeSharedRMSNorm
higgs_audio_v2.HiggsAudioV2RMSNorm hunyuan_v1_dense.HunYuanDenseV1RMSNorm hunyuan_v1_moe.HunYuanMoEV1RMSNorm
hunyuan_vl.HunYuanVLRMSNorm hy_v3.HYV3RMSNorm hy_v4.HYV4RMSNorm hyperclovax.HyperCLOVAXRMSNorm idefics.IdeficsRMSNorm
idefics2.Idefics2RMSNorm idefics3.Idefics3RMSNorm imagegpt.ImageGPTLayerNorm inkling.InklingRMSNorm
inkling2.Inkling2RMSNorm internvl.InternVLVisionRMSNorm jamba.JambaRMSNorm jetmoe.JetMoeRMSNorm
kimi_linear.KimiLinearRMSNorm kolibri1.Kolibri1RMSNorm kosmos2_5.Kosmos2_5LayerNorm laguna.LagunaRMSNorm
lfm2.Lfm2RMSNorm lfm2_moe.Lfm2MoeRMSNorm lfm3.Lfm3RMSNorm lfm3_vl.Lfm3VlVisionRMSNorm lighton_ocr.LightOnOcrRMSNorm
llama.LlamaRMSNorm llama4.Llama4TextRMSNorm longcat_flash.LongcatFlashRMSNorm longt5.LongT5LayerNorm
mamba.MambaRMSNorm mamba2.Mamba2RMSNorm mellum.MellumRMSNorm mimo_v2_flash.MiMoV2FlashRMSNorm minicpm3.MiniCPM3RMSNorm
minimax.MiniMaxRMSNorm minimax_m2.MiniMaxM2RMSNorm ministral.MinistralRMSNorm ministral3.Ministral3RMSNorm
mistral.MistralRMSNorm mistral3.Mistral3RMSNorm mistral4.Mistral4RMSNorm mistral_large4.MistralLarge4RMSNorm
mixtral.MixtralRMSNorm mllama.MllamaTextRMSNorm molmo2.Molmo2RMSNorm mt5.MT5LayerNorm
muse_glimmer_assistant.MuseGlimmerAssistantRMSNorm neucodec.NeuCodecRMSNorm olmo2.Olmo2RMSNorm olmo3.Olmo3RMSNorm
olmo_hybrid.OlmoHybridRMSNorm olmoe.OlmoeRMSNorm openai_privacy_filter.OpenAIPrivacyFilterRMSNorm ovis2.Ovis2RMSNorm
paddleocr_vl.PaddleOCRRMSNorm pe_audio.PeAudioEncoderRMSNorm pe_audio_video.PeAudioVideoEncoderRMSNorm
pe_video.PeVideoEncoderRMSNorm phi3.Phi3RMSNorm phi4_multimodal.Phi4MultimodalRMSNorm pix2struct.Pix2StructLayerNorm
pixtral.PixtralRMSNorm pocket_tts.PocketTTSFlowLayerNorm pocket_tts.PocketTTSTimestepNorm pop2piano.Pop2PianoLayerNorm
qianfan_ocr.QianfanOCRVisionRMSNorm qwen2.Qwen2RMSNorm qwen2_5_omni.Qwen2_5OmniRMSNorm qwen2_5_vl.Qwen2_5_VLRMSNorm
qwen2_moe.Qwen2MoeRMSNorm qwen2_vl.Qwen2VLRMSNorm qwen3.Qwen3RMSNorm qwen3_moe.Qwen3MoeRMSNorm
qwen3_omni_moe.Qwen3OmniMoeCode2WavRMSNorm qwen3_omni_moe.Qwen3OmniMoeRMSNorm qwen3_omni_moe.Qwen3OmniMoeTextRMSNorm
qwen3_omni_moe.Qwen3OmniMoeThinkerTextRMSNorm qwen3_vl.Qwen3VLTextRMSNorm qwen3_vl_moe.Qwen3VLMoeTextRMSNorm
sapiens2.Sapiens2RMSNorm seed_oss.SeedOssRMSNorm smollm3.SmolLM3RMSNorm solar_open.SolarOpenRMSNorm
switch_transformers.SwitchTransformersLayerNorm t5.T5LayerNorm timesfm.TimesFmRMSNorm timesfm2_5.TimesFm2_5RMSNorm
udop.UdopLayerNorm ultrabert.UltrabertRMSNorm ultravbert.UltraVBertRMSNorm umt5.UMT5LayerNorm
unlimited_ocr.UnlimitedOcrTextRMSNorm vibevoice.VibeVoiceRMSNorm
vibevoice_acoustic_tokenizer.VibeVoiceAcousticTokenizerRMSNorm vibevoice_asr.VibeVoiceAsrRMSNorm
voxtral_realtime.VoxtralRealtimeRMSNorm xcodec2.Xcodec2RMSNorm youtu.YoutuRMSNorm zamba.ZambaRMSNorm
zamba2.Zamba2RMSNorm zaya.ZayaRMSNorm
"""
"""``weight * normalised`` over the last axis (the Llama and T5 form), perhaps with a bias."""

LAST_AXIS_FLOAT32 = """
cohere.CohereLayerNorm cohere2.Cohere2LayerNorm cohere2_moe.Cohere2MoeLayerNorm cohere_compass.CohereCompassLayerNorm
diffusion_gemma.DiffusionGemmaRMSNorm embedding_gemma2.EmbeddingGemma2RMSNorm gemma3n.Gemma3nRMSNorm
gemma4.Gemma4RMSNorm gemma4_unified.Gemma4UnifiedRMSNorm helium.HeliumRMSNorm
kyutai_speech_to_text.KyutaiSpeechToTextRMSNorm moshi.MoshiRMSNorm muse_glimmer.MuseGlimmerRMSNorm
muse_spark.MuseSparkRMSNorm nemotron_h.NemotronHRMSNorm nemotron_h_omni.NemotronH_Omni_RMSNorm neomme.NeoMMERMSNorm
"""
"""The same, with the weight cast to float32 in ``forward``."""

ONE_PLUS = """
gemma.GemmaRMSNorm gemma2.Gemma2RMSNorm gemma3.Gemma3RMSNorm minimax_m3_vl.MiniMaxM3VLRMSNorm
muse_glimmer.MuseGlimmerTextCenteredRMSNorm muse_spark.MuseSparkTextCenteredRMSNorm nemotron.NemotronLayerNorm1P
qwen3_5.Qwen3_5RMSNorm qwen3_5_moe.Qwen3_5MoeRMSNorm qwen3_next.Qwen3NextRMSNorm qwen4_exp.Qwen4ExpTextRMSNorm
recurrent_gemma.RecurrentGemmaRMSNorm step3p7.Step3p7RMSNorm t5gemma.T5GemmaRMSNorm t5gemma2.T5Gemma2RMSNorm
vaultgemma.VaultGemmaRMSNorm videoprism.VideoPrismLayerNorm
"""
"""``(1 + weight) * normalised`` (the Gemma form)."""

GATED = """
bailing_hybrid.BailingHybridRMSNormGated bamba.BambaRMSNormGated falcon_h1.FalconH1RMSNormGated
glm5_next.Glm5NextTextRMSNormGated granitemoehybrid.GraniteMoeHybridRMSNormGated kimi_linear.KimiLinearRMSNormGated
mamba2.MambaRMSNormGated nemotron_h.NemotronHRMSNormGated olmo_hybrid.OlmoHybridRMSNormGated
qwen3_5.Qwen3_5RMSNormGated qwen3_5_moe.Qwen3_5MoeRMSNormGated qwen3_next.Qwen3NextRMSNormGated
qwen4_exp.Qwen4ExpTextRMSNormGated zamba2.Zamba2RMSNormGated
"""
"""``weight * normalised`` times or after a function of a second input (the Mamba form)."""

MAPS = """
emu3.Emu3VQVAEGroupNorm eomt.EomtLayerNorm2d eomt_dinov3.EomtDinov3LayerNorm2d poolformer.PoolFormerGroupNorm
videomt.VideomtLayerNorm2d vitdet.VitDetLayerNorm
"""
"""Norms over (N, C, H, W)."""

SEQUENCES = """
pe_audio.PeAudioMaskedGroupNorm pe_audio_video.PeAudioVideoMaskedGroupNorm pe_video.PeVideoMaskedGroupNorm
squeezebert.SqueezeBertLayerNorm
"""
"""Norms over (N, C, L)."""

FROZEN = """
conditional_detr.ConditionalDetrFrozenBatchNorm2d d_fine.DFineFrozenBatchNorm2d dab_detr.DabDetrFrozenBatchNorm2d
deformable_detr.DeformableDetrFrozenBatchNorm2d deimv2.Deimv2FrozenBatchNorm2d detr.DetrFrozenBatchNorm2d
grounding_dino.GroundingDinoFrozenBatchNorm2d mm_grounding_dino.MMGroundingDinoFrozenBatchNorm2d
pp_doclayout_v2.PPDocLayoutV2FrozenBatchNorm2d pp_doclayout_v3.PPDocLayoutV3FrozenBatchNorm2d
pp_doclayout_v4.PPDocLayoutV4FrozenBatchNorm2d rt_detr.RTDetrFrozenBatchNorm2d rt_detr_v2.RTDetrV2FrozenBatchNorm2d
table_transformer.TableTransformerFrozenBatchNorm2d
"""
"""Copies of FrozenBatchNorm2d."""

FORMATTED = """
convnext.ConvNextLayerNorm convnextv2.ConvNextV2LayerNorm deepseek_ocr2.DeepseekOcr2SamLayerNorm
deepseek_vl_hybrid.DeepseekVLHybridLayerNorm dinov3_convnext.DINOv3ConvNextLayerNorm edgetam.EdgeTamLayerNorm
edgetam_video.EdgeTamVideoLayerNorm got_ocr2.GotOcr2LayerNorm lw_detr.LwDetrLayerNorm
pp_formulanet.PPFormulaNetLayerNorm rf_detr.RfDetrLayerNorm sam.SamLayerNorm sam2.Sam2LayerNorm
sam2_video.Sam2VideoLayerNorm sam3_tracker.Sam3TrackerLayerNorm sam3_tracker_video.Sam3TrackerVideoLayerNorm
sam_hq.SamHQLayerNorm seggpt.SegGptLayerNorm slanext.SLANeXtLayerNorm unlimited_ocr.UnlimitedOcrSamLayerNorm
"""
"""LayerNorms whose ``data_format`` says where the channels are."""

LAMBDA = """
dinov2.Dinov2LayerScale dinov2_with_registers.Dinov2WithRegistersLayerScale dinov3_vit.DINOv3ViTLayerScale
eomt.EomtLayerScale eomt_dinov3.EomtDinov3LayerScale radio.RadioLayerScale rf_detr.RfDetrDinov2LayerScale
sam3.Sam3ViTLayerScale sapiens2.Sapiens2LayerScale tipsv2.Tipsv2VisionLayerScale videomt.VideomtLayerScale
"""
"""LayerScale with ``lambda1``."""

SCALE = """
mimi.MimiLayerScale pocket_tts_audio_tokenizer.PocketTTSAudioTokenizerLayerScale
qwen3_omni_moe.Qwen3OmniMoeCode2WavLayerScale
"""
"""LayerScale with ``scale``."""

CONVOLUTIONS = """
align.AlignVisionDepthwiseConv2d efficientnet.EfficientNetDepthwiseConv2d
"""
PADDING_CONVOLUTIONS = """
gemma4.Gemma4AudioCausalConv1d muse_spark.MuseSparkAudioCausalConv1d
nemotron_asr_streaming.NemotronAsrStreamingEncoderCausalConv1d
nemotron_asr_streaming.NemotronAsrStreamingEncoderCausalConv2D perceiver.Conv2dSamePadding
voxtral_realtime.VoxtralRealtimeCausalConv1d
"""
"""Convolutions that pad their input with zeros first."""
