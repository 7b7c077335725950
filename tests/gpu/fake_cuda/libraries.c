/* cuBLAS, cuBLASLt and cuDNN as far as their results are read; a call that would launch is counted. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void fake_cuda_library_call(const char *name);

static _Atomic int failing_status, num_failing; /* of the next launches */

static int launch(const char *name) {
    fake_cuda_library_call(name);
    if (!num_failing) return 0;
    num_failing--;
    return failing_status;
}
void fake_cuda_fail_library(int status, int num) { failing_status = status, num_failing = num; }

#define LAUNCHES(name) int name() { return launch(#name); }
#define CREATES(name) int name(void **made) { *made = calloc(1, 256); return 0; }

/* ---- cuBLAS ---- */

CREATES(cublasCreate_v2)
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(int status) { return "CUBLAS_STATUS"; }
const char *cublasGetStatusString(int status) { return "a status of cuBLAS"; }
LAUNCHES(cublasSgemm_v2)
LAUNCHES(cublasDgemm_v2)
LAUNCHES(cublasGemmEx)
LAUNCHES(cublasGemmBatchedEx)
LAUNCHES(cublasGemmStridedBatchedEx)
LAUNCHES(cublasSgemmBatched)
LAUNCHES(cublasSgemmStridedBatched)
LAUNCHES(cublasDgemmStridedBatched)
LAUNCHES(cublasSgeam)
LAUNCHES(cublasSgemv_v2)
LAUNCHES(cublasScopy_v2)
LAUNCHES(cublasSscal_v2)

CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatrixTransformDescCreate)
LAUNCHES(cublasLtMatmul)
LAUNCHES(cublasLtMatrixTransform)
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int num_wanted, char *found, int *num_found) {
    memset(found, 0, 96); /* a cublasLtMatmulHeuristicResult_t: status success, no workspace */
    *num_found = 1;
    return 0;
}

/* ---- cuDNN ---- */

size_t cudnnGetVersion() { return 92600; }
size_t cudnnGetCudartVersion() { return 13020; }
const char *cudnnGetErrorString(int status) { return "a status of cuDNN"; }
void cudnnGetLastErrorString(char *text, size_t size) { if (size) text[0] = 0; }
CREATES(cudnnCreate)
int cudnnGetStream(void *handle, void **stream) { *stream = 0; return 0; }
CREATES(cudnnCreateTensorDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateReduceTensorDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateLRNDescriptor)
LAUNCHES(cudnnAddTensor)
LAUNCHES(cudnnConvolutionForward)
LAUNCHES(cudnnReduceTensor)
LAUNCHES(cudnnBackendExecute)
int cudnnBackendCreateDescriptor(int kind, void **made) { int *own = calloc(1, 256); own[0] = kind; *made = own; return 0; }

/* Attribute types whose values the front end of cuDNN reads; of the others there are none. */
enum { INT64 = 3, BACKEND_DESCRIPTOR = 15, INT32 = 23 };
enum { HEURISTIC_RESULTS_ATTRIBUTE = 302 };
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t num_wanted, int64_t *num_found, void *found) {
    int is_read = type == INT64 || type == INT32 || type == BACKEND_DESCRIPTOR;
    if (num_found) *num_found = is_read && name != HEURISTIC_RESULTS_ATTRIBUTE;
    if (found && num_wanted > 0 && type == INT64) *(int64_t *)found = 0;
    if (found && num_wanted > 0 && type == INT32) *(int32_t *)found = 0;
    return 0;
}
