/* The sections of the report, in the order of the page. Each adds nothing if the run has nothing to say there. */
#ifndef NIB_REPORT_SECTIONS_H
#define NIB_REPORT_SECTIONS_H

#include "base/buffer.h"
#include "report_data.h"

void nib_report_headline(nib_buffer *out, const nib_report_data *data);
nib_status nib_report_curves(nib_buffer *out, const nib_report_data *data);
void nib_report_answers(nib_buffer *out, const nib_report_data *data);
void nib_report_sources(nib_buffer *out, const nib_report_data *data);
void nib_report_memory(nib_buffer *out, const nib_report_data *data);
void nib_report_machine(nib_buffer *out, const nib_report_data *data);
void nib_report_configuration(nib_buffer *out, const nib_report_data *data);

#endif
