/* What the stream is asked for between begin and end becomes a graph: the driver keeps kernels and their arguments, and
 * one launch does them all. Source: CUDA C++ Programming Guide, "CUDA Graphs", stream capture. */
#include "cuda/backend.h"
#include "cuda/recording.h"
#include "cuda/status.cuh"

struct nib_recording {
    cudaGraphExec_t graph;
};

nib_status nib_cuda_record_begin(nib_ops *ops)
{
    void *piece;
    /* If scratch has still to grow to what the last op took in pieces, it does so now: nothing can be allocated later.
     */
    NIB_TRY(nib_arena_take(ops->scratch, 1, 1, &piece));
    nib_arena_reset(ops->scratch, 0);
    NIB_CHECK_CUDA(cudaStreamBeginCapture(nib_cuda_stream(ops), cudaStreamCaptureModeThreadLocal));
    return NIB_OK;
}

nib_status nib_cuda_record_end(nib_ops *ops, nib_recording **recording)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable;
    *recording = NULL;
    cudaError_t error = cudaStreamEndCapture(nib_cuda_stream(ops), &graph);
    if (error == cudaErrorStreamCaptureInvalidated) {
        cudaGetLastError();
        return NIB_OK;
    }
    NIB_CHECK_CUDA(error);
    error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    NIB_CHECK_CUDA(error);
    *recording = new nib_recording{executable};
    return NIB_OK;
}

nib_status nib_cuda_replay(nib_ops *ops, nib_recording *recording)
{
    NIB_CHECK_CUDA(cudaGraphLaunch(recording->graph, nib_cuda_stream(ops)));
    return NIB_OK;
}

/* A graph that still runs is freed by the driver when it is done. */
void nib_cuda_recording_free(nib_ops *ops, nib_recording *recording)
{
    (void)ops;
    cudaGraphExecDestroy(recording->graph);
    delete recording;
}
