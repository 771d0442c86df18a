"""Messages as they were met, each with where, and the class that each belongs to."""

from typing import get_args

import pytest

from agent.faults import REMEDIES, TEXT_CHARS_MAX, Class, Fault, Remedy, fault_in, fault_of_xid

ORT = "[ONNXRuntimeError] : "
CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "ERRTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] "
)
ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) "
)

# (where, what was said, class, remedy)
MET: list[tuple[str, str, Class, Remedy]] = [
    (
        "microsoft/onnxruntime#5295, #26312",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x ; "
        "expr=cudaMemcpy(dst_data, src_data, bytes, cudaMemcpyHostToDevice);",
        *("sticky", "instance"),
    ),
    (
        "microsoft/onnxruntime#2963: CUDA before 10.1 had other numbers",
        "CUDA failure 77: an illegal memory access was encountered ; GPU=0 ; hostname=x ; "
        "expr=cudaEventDestroy(read_event_);",
        *("sticky", "instance"),
    ),
    (
        "C0untFloyd/roop-unleashed#32",
        f"{ORT}1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=x ; "
        "file=gpu_data_transfer.cc ; line=73 ; expr=cudaMemcpyAsync(dst_data, src_data, bytes)",
        *("sticky", "instance"),
    ),
    (
        "microsoft/onnxruntime#14211",
        f"{CALL}CUDA failure 999: unknown error ; GPU=192915439 ; expr=cudaSetDevice(device_id); ",
        *("sticky", "instance"),
    ),
    (
        "triton-inference-server/server#4766",
        "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x ; "
        "expr=cudnnConvolutionForward(s_.handle, &alpha, s_.x_tensor)",
        *("sticky", "instance"),
    ),
    (
        "microsoft/onnxruntime#23497: cuDNN 9",
        "Non-zero status code returned while running Conv node. Name:'/backbone/conv1/Conv'Status "
        "Message: CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x ; "
        "file=conv.cc ; line=493 ; expr=cudnnAddTensor(cudnn_handle, &alpha, s_.b_tensor)",
        *("sticky", "instance"),
    ),
    (
        "C0untFloyd/roop-unleashed#995",
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=x ; file=gemm.cc ; "
        "line=121 ; expr=cublasGemmHelper( GetCublasHandle(ctx), CUBLAS_OP_N)",
        *("sticky", "instance"),
    ),
    (
        "the form of styler00dollar/VSGAN-tensorrt-docker#74, with the words of CUDA error 700",
        "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was "
        "encountered)",
        *("sticky", "instance"),
    ),
    (
        "mrnabati/CenterFusion#76",
        "CUDA error: the launch timed out and was terminated",
        *("hang", "domain_on_cpu"),
    ),
    (
        "microsoft/onnxruntime#22702",
        f"{ORT}6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        f"Name:'/fc1/Conv' Status Message: {ARENA}Failed to allocate memory for requested buffer "
        "of size 4585490524328388608",
        *("out_of_memory", "smaller"),
    ),
    (
        "microsoft/onnxruntime#23121: the arena's own bound, gpu_mem_limit",
        f"{ORT}6 : RUNTIME_EXCEPTION : Non-zero status code returned while running TfIdfVectorizer "
        f"node. Status Message: {ARENA}Available memory of 0 is smaller than requested bytes "
        "of 2048",
        *("out_of_memory", "smaller"),
    ),
    (
        "onnxruntime's cuda_call.cc with the words of CUDA error 2",
        f"{CALL}CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc(&p, n);",
        *("out_of_memory", "smaller"),
    ),
    (
        "C0untFloyd/roop-unleashed#1065, fudan-generative-vision/hallo#218",
        f"{ORT}6 : RUNTIME_EXCEPTION : Exception during initialization: {CALL}CUBLAS failure 3: "
        "CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=x ; expr=cublasCreate(&cublas_handle_);",
        *("out_of_memory", "smaller"),
    ),
    (
        "deepinsight/insightface#2524, microsoft/onnxruntime#11561",
        f"{CALL}CUDA failure 100: no CUDA-capable device is detected ; GPU=32712 ; hostname=x ; "
        "line=245 ; expr=cudaSetDevice(info_.device_id);",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#14030",
        f"{CALL}CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#26221",
        "Non-zero status code returned while running Relu node. Name:'Relu_2' Status Message: CUDA "
        "error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the "
        "device",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#17337",
        f"{CALL}CUDNN failure 1: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=x ; line=52 ; "
        "expr=cudnnCreate(&cudnn_handle_); ",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#2386",
        f"{CALL}CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=x ; "
        "expr=cublasCreate(&cublas_handle_);",
        *("ep_missing", "cpu"),
    ),
    (
        "memoavatar/memo#13",
        f"onnxruntime::ProviderLibrary::Get() {ORT}1 : FAIL : Failed to load library "
        "libonnxruntime_providers_cuda.so with error: libcudnn_adv.so.9: cannot open shared object "
        "file: No such file or directory",
        *("ep_missing", "cpu"),
    ),
    (
        "onnxruntime-gpu 1.31.1 on a machine without CUDA",
        "Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*",
        *("ep_missing", "cpu"),
    ),
    (
        "the loader's words for such a library",
        "cuda: libcublasLt.so.13: cannot open shared object file: No such file or directory",
        *("ep_missing", "cpu"),
    ),
    (
        "onnxruntime_inference_collection.py, bytedance/LatentSync#225",
        "Specified provider 'CUDAExecutionProvider' is not in available provider names.Available "
        "providers: 'AzureExecutionProvider, CPUExecutionProvider'",
        *("ep_missing", "cpu"),
    ),
    (
        "onnxruntime 1.31.1, with session.disable_cpu_ep_fallback",
        f"{ORT}1 : FAIL : This session contains graph nodes that are assigned to the default CPU "
        "EP, but fallback to CPU EP has been explicitly disabled by the user.",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#21415, onnx/onnx-tensorrt#982",
        "Non-zero status code returned while running TRTKernel_graph_torch_jit_4528_0 node. "
        "Status Message: TensorRT EP failed to create engine from network.",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime#22139",
        "TensorRT EP could not deserialize engine from binary data",
        *("ep_missing", "cpu"),
    ),
    (
        "microsoft/onnxruntime PR 2815: of EP_FAIL, the next execution provider is to be tried",
        f"{ORT}11 : EP_FAIL : something that is not known here",
        *("ep_missing", "cpu"),
    ),
    (
        "onnxruntime/mobius#316",
        f"{CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; "
        "GPU=-1 ; hostname=x ; line=336 ; expr=cudaSetDevice(info_.device_id);",
        *("driver_mismatch", "person"),
    ),
    (
        "NVIDIA/nvidia-docker#1256",
        "Error 803: system has unsupported display driver / cuda driver combination",
        *("driver_mismatch", "reboot"),
    ),
    (
        "nvidia-smi; tensorflow/tensorflow#52530 and many",
        "Failed to initialize NVML: Driver/library version mismatch",
        *("driver_mismatch", "reboot"),
    ),
    (
        "pynvml of nvidia-ml-py 13.615.71",
        "NVML: RM has detected an NVML/RM version mismatch.",
        *("driver_mismatch", "reboot"),
    ),
    ("pynvml", "NVML: NVML Shared Library Not Found", *("ep_missing", "cpu")),
    ("pynvml", "NVML: Driver Not Loaded", *("ep_missing", "cpu")),
    ("pynvml", "NVML: GPU is lost", *("off_the_bus", "reboot")),
    ("pynvml", "NVML: GPU requires restart", *("off_the_bus", "reboot")),
    (
        "nvidia-smi",
        "Unable to determine the device handle for GPU 0000:05:00.0: GPU is lost.  Reboot the "
        "system to recover this GPU",
        *("off_the_bus", "reboot"),
    ),
    (
        "leptonai/gpud PR 1209, NVIDIA/open-gpu-kernel-modules#507",
        "NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen off the bus.",
        *("off_the_bus", "reboot"),
    ),
    (
        "NVIDIA/NVSentinel#155: without an Xid",
        "NVRM: (PCI ID: 10de:26b5) installed in this system has\nNVRM: fallen off the bus and is "
        "not responding to commands.",
        *("off_the_bus", "reboot"),
    ),
    (
        "NVIDIA/open-gpu-kernel-modules#1342",
        "nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot to "
        "recover",
        *("off_the_bus", "reboot"),
    ),
    (
        "tinygrad/tinygrad#6947",
        "NVRM: Xid (PCI:0000:01:00): 31, pid=14292, name=python, Ch 00000030, intr 00000000. MMU "
        "Fault: ENGINE HOST0 HUBCLIENT_ESC faulted @ 0x10_00200000.",
        *("sticky", "instance"),
    ),
    (
        "madMAx43v3r/chia-gigahorse#301",
        "NVRM: Xid (PCI:0000:0a:00): 62, pid='<unknown>', name=<unknown>, 2023b230 20238a3a",
        *("hang", "reboot"),
    ),
]
ORDINARY = [
    f"{ORT}2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the following indices\n"
    " index: 1 Got: 3 Expected: 4\n Please fix either the inputs/outputs or the model.",
    f"{ORT}2 : INVALID_ARGUMENT : Unexpected input data type. Actual: (tensor(double)) , expected: "
    "(tensor(float))",
    f"{ORT}2 : INVALID_ARGUMENT : Invalid input name: CUDA failure 2: out of memory",
    f"{ORT}7 : INVALID_PROTOBUF : Load model from a.onnx failed:Protobuf parsing failed.",
    f"{ORT}9 : NOT_IMPLEMENTED : Could not find an implementation for ConvInteger(10) node",
    f"{ORT}10 : INVALID_GRAPH : This is an invalid model. Error: two nodes with same node name",
    f"{ORT}1 : FAIL : Non-zero status code returned while running MatMul node. Name:'m' Status "
    "Message: matmul_helper.h:144 Compute MatMul dimension mismatch",
    f"{ORT}6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Reshape node. "
    "Status Message: reshape_helper.h:45 The input tensor cannot be reshaped to the shape",
    # microsoft/onnxruntime#1606: the model's own, though cuDNN says it
    "CUDNN failure 3: CUDNN_STATUS_BAD_PARAM ; GPU=0 ; expr=cudnnSetTensorNdDescriptor(tensor_)",
    "CUDA failure 1: invalid argument ; GPU=0 ; hostname=x ; expr=cudaMemcpyAsync(dst, src, bytes)",
    # microsoft/onnxruntime#26170: an output without an address
    "Non-zero status code returned while running TRTKernel_graph_main_0 node. Status Message: "
    "TensorRT EP execution context enqueue failed.",
    "triton: onnx runtime error 2: not enough space: expected 318080, got 314240",
    "NVRM: Xid (PCI:0000:0a:00): 45, pid='<unknown>', name=<unknown>, Ch 00000008",
    "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping",
    "NVML: Not Supported",
    "output y is not finite",
    "",
]


@pytest.mark.parametrize(("where", "said", "kind", "remedy"), MET, ids=[one[0] for one in MET])
def test_what_was_really_said_is_of_its_class(
    where: str, said: str, kind: Class, remedy: Remedy
) -> None:
    assert fault_in(said) == Fault(kind, remedy)
    assert fault_in(f"ONNX Runtime: {said}") == Fault(kind, remedy), "as the engine hands it on"


@pytest.mark.parametrize("said", ORDINARY)
def test_what_is_the_models_own_or_nothing_is_of_none(said: str) -> None:
    assert fault_in(said) is None


def test_each_class_has_a_remedy_and_all_but_heat_have_words() -> None:
    assert REMEDIES.keys() == set(get_args(Class))
    assert set(REMEDIES.values()) == set(get_args(Remedy))
    assert {kind for _, _, kind, _ in MET} == set(get_args(Class)) - {"thermal"}


def test_xids_need_what_nvidias_catalog_says() -> None:
    """Those with a RESTART_APP there, and those with a RESET_GPU or RESTART_BM."""
    assert [fault_of_xid(n) for n in (13, 31, 69, 94)] == [Fault("sticky", "instance")] * 4
    reset = (46, 48, 62, 64, 79, 95, 109, 119, 120, 140, 143, 158)
    assert {found.remedy for n in reset if (found := fault_of_xid(n))} == {"reboot"}
    assert all(fault_of_xid(n) for n in reset)
    assert [fault_of_xid(n) for n in (0, 45, 63, 92, 999)] == [None] * 5


def test_of_a_long_message_the_beginning_is_looked_through() -> None:
    said = "CUDA failure 719: unspecified launch failure"
    assert fault_in(said + "x" * TEXT_CHARS_MAX) == Fault("sticky", "instance")
    assert fault_in("x" * TEXT_CHARS_MAX + said) is None
