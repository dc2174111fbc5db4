"""Messages of CUDA, its libraries and ONNX Runtime: what is memory, and what ends a process."""

from __future__ import annotations

import pytest

from onnxfi.runtime.engine.device_errors import STICKY, ends_process, out_of_memory


@pytest.mark.parametrize("number", STICKY)
def test_every_sticky_error_is_known_by_its_number(number: int) -> None:
    text = f"CUDA failure {number}: {STICKY[number]} ; GPU=0 ; hostname=h ; file=f.cc ; line=1 ; expr=cudaMemcpy()"
    assert ends_process(RuntimeError(text))
    assert not out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", [text for number, text in STICKY.items() if number != 999])
def test_every_sticky_error_is_known_by_its_text(text: str) -> None:
    assert ends_process(RuntimeError(f"TensorRT EP failed: Cuda Runtime ({text})"))


@pytest.mark.parametrize(
    "text",
    [
        "Cuda Runtime (700)", "Cuda error 719 in enqueue", "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED",
        "GPU is lost. Reboot the system to recover this GPU", "CUDA error: device-side assert triggered",
    ],
)  # fmt: skip
def test_other_ways_to_say_so(text: str) -> None:
    assert ends_process(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0", "CUDA failure 1: invalid argument", "an unknown error happened",
        "CUBLAS failure 7: CUBLAS_STATUS_INVALID_VALUE", "cuda failure 70012: none such", "Input shape:{700}",
    ],
)  # fmt: skip
def test_a_process_survives_other_errors(text: str) -> None:
    assert not ends_process(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0", "CUDA_ERROR_OUT_OF_MEMORY", "std::bad_alloc", "bad allocation",
        "Failed to allocate memory for requested buffer of size 1024",
        "BFCArena::AllocateRawInternal Available memory of 128 is smaller than requested bytes of 4096",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", "CUBLAS failure 3: the resource allocation failed",
        "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; expr=cublasCreate(&h)",
        "CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; expr=cudnnCreate(&h)",
        "CUFFT failure 2: CUFFT_ALLOC_FAILED", "CURAND failure 102: CURAND_STATUS_ALLOCATION_FAILED",
        "TensorRT: OutOfMemory", "[Error] Could not allocate: CUDA out of memory",
    ],
)  # fmt: skip
def test_failed_allocations_are_memory(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    assert not ends_process(RuntimeError(text))


@pytest.mark.parametrize(
    "text", ["CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_NOT_SUPPORTED", "invalid argument"]
)
def test_other_errors_are_no_memory(text: str) -> None:
    assert not out_of_memory(RuntimeError(text))


def test_memory_of_python_is_memory() -> None:
    assert out_of_memory(MemoryError())
