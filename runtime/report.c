#include "report.h"
#include "base/file.h"
#include "report_html.h"
#include "report_sections.h"

#include <string.h>

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL || slash[1] == 0 ? path : slash + 1;
}

static void head(nib_buffer *out, const char *name)
{
    nib_buffer_text(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    nib_html_text(out, name);
    nib_buffer_text(out, " · Nibble</title>\n<style>\n");
    nib_buffer_text(out, nib_report_style);
    nib_buffer_text(out, "</style>\n</head>\n<body>\n<main>\n");
}

/* What was trained, and how far it is. */
static void title(nib_buffer *out, const nib_report_data *d, const char *name)
{
    const nib_json *lora = nib_json_get(d->config, "lora");
    int64_t planned = nib_report_count(d->facts, "steps");
    nib_buffer_text(out, "<header>\n<div><h1>");
    nib_html_text(out, name);
    nib_buffer_text(out, "</h1>\n<p>");
    nib_html_text(out, last_part(nib_report_string(d->config, "model")));
    if (nib_json_is(lora, NIB_JSON_OBJECT))
        nib_buffer_format(out, ", LoRA of rank %lld on %s weights", (long long)nib_report_count(lora, "r"),
                          strcmp(nib_report_string(d->config, "quantization"), "nf4") == 0 ? "NF4" : "16-bit");
    else
        nib_buffer_text(out, ", every weight trained");
    nib_buffer_format(out, "</p></div>\n<p class=\"state%s\"><b>", d->finished ? "" : " open");
    if (d->finished) {
        nib_buffer_text(out, d->steps < planned ? "Stopped early after " : "Finished, ");
        nib_html_count(out, d->steps);
    } else {
        nib_buffer_text(out, "At step ");
        nib_html_count(out, d->steps);
        nib_buffer_text(out, " of ");
        nib_html_count(out, planned);
    }
    nib_buffer_text(out, d->finished ? " steps</b>" : "</b>");
    if (d->last_time > 0) {
        nib_buffer_text(out, "<br>");
        nib_html_time(out, d->last_time);
    }
    nib_buffer_text(out, "</p>\n</header>\n");
}

static void foot(nib_buffer *out, const nib_report_data *d)
{
    nib_buffer_text(out, "<footer>Written by Nibble ");
    nib_html_text(out, nib_report_string(d->facts, "version"));
    if (nib_report_string(d->facts, "commit")[0] != 0) {
        nib_buffer_text(out, ", commit ");
        nib_html_text(out, nib_report_string(d->facts, "commit"));
    }
    nib_buffer_format(out,
                      ". The numbers behind this page are in <code>metrics.jsonl</code>, the %s is in "
                      "<code>%s/</code>.</footer>\n</main>\n<script>\n",
                      d->result, d->result);
    nib_buffer_text(out, nib_report_script);
    nib_buffer_text(out, "</script>\n</body>\n</html>\n");
}

nib_status nib_report_write(const char *folder)
{
    nib_report_data data;
    nib_buffer page = {0};
    nib_status status = nib_report_data_read(folder, &data);
    if (status != NIB_OK) goto done;
    const char *name = last_part(nib_report_string(data.config, "output"));
    head(&page, name);
    title(&page, &data, name);
    nib_report_headline(&page, &data);
    NIB_TRY_GOTO(nib_report_curves(&page, &data), done);
    nib_report_answers(&page, &data);
    nib_report_sources(&page, &data);
    nib_buffer_text(&page, "<div class=\"two\">\n");
    nib_report_memory(&page, &data);
    nib_report_machine(&page, &data);
    nib_buffer_text(&page, "</div>\n");
    nib_report_configuration(&page, &data);
    foot(&page, &data);
    status = nib_file_replace_text(folder, "report.html", &page);
done:
    nib_report_data_free(&data);
    nib_buffer_free(&page);
    return status;
}
