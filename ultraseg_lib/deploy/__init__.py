"""UltraSeg in use: its exact inference form, export, backends, benchmark and prediction."""

# What makes each backend leave out newer instructions. Set before the backend is imported; ONNX
# Runtime has no such setting.
INSTRUCTION_SETS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # PyTorch's and OpenVINO's convolutions
        "ULTRASEG_MARCH": "x86-64-v3",
    },
}
