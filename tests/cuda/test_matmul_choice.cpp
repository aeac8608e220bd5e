/* The choice of cublasLt's algorithms: the fastest by the stand-in's clock, which has three that differ in the order of
 * their sums; kept on disk from backend to backend; a file that is damaged, another card's, or cannot be written. */
#include "cuda_check.h"

extern "C" {
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/random.h"
}

#include "linear_case.h"

#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/matmul_choice.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/nibble-choice-XXXXXX";

/* fp32 of a product of K = 300, by a backend of its own; of a run with this folder, if there is one, that is told it
 * between two of the same shape. */
static std::vector<float> product(int64_t M = 5, const char *run = nullptr)
{
    nib_ops *ops;
    const int64_t N = 7, K = 300;
    check_ok(nib_cuda_backend_create(0, &ops));
    std::vector<float> found;
    for (int follows = 0; follows < (run != nullptr ? 2 : 1); follows++) {
        if (follows == 1) check_ok(ops->keep_algorithms(ops, run));
        strided_matrix a(random_bf16(1, M * K), M, K, 0), b(random_bf16(2, N * K), N, K, 0);
        device_buffer<float> c(std::vector<float>((size_t)(M * N)));
        check_ok(nib_cuda_matmul(ops, a.matrix(), false, b.matrix(), true, false, {c.data(), M, N, N, NIB_DTYPE_F32}));
        found = c.download();
    }
    ops->close(ops);
    return found;
}

/* The one file of choices. */
static std::string path_of_file()
{
    const std::string cache = std::string(folder) + "/nibble/";
    std::string path;
    DIR *open = opendir(cache.c_str());
    assert_non_null(open);
    for (struct dirent *entry; (entry = readdir(open)) != nullptr;) {
        const std::string name = entry->d_name;
        if (name.size() > 4 && name.compare(name.size() - 4, 4, ".txt") == 0) path = cache + name;
    }
    closedir(open);
    return path;
}

static std::string read_choices()
{
    char *text;
    size_t length;
    check_ok(nib_file_read(path_of_file().c_str(), 1 << 20, &text, &length));
    std::string copy(text, length);
    nib_free(text);
    return copy;
}

static void write_choices(const std::string &text)
{
    check_ok(nib_file_replace(path_of_file().c_str(), text.data(), text.size()));
}

/* What algorithm `order` computes: alone, nothing is measured. */
static std::vector<float> by_algorithm(int order)
{
    std::vector<uint64_t> time(3, 9000);
    time[(size_t)order] = 1000;
    check_ok(nib_file_remove_tree((std::string(folder) + "/nibble").c_str()));
    nib_emulator::set_products(3, time);
    return product();
}

static void the_fastest_is_taken(void **)
{
    const std::vector<float> first = by_algorithm(0), second = by_algorithm(1), third = by_algorithm(2);
    assert_true(first != second && second != third && first != third);
    check_ok(nib_file_remove_tree((std::string(folder) + "/nibble").c_str()));
    nib_emulator::set_products(3, {100000, 99500, 99400}); /* no more than noise */
    assert_true(product() == first);
}

static void a_choice_outlives_its_process(void **)
{
    const std::vector<float> third = by_algorithm(2);
    const std::string kept = read_choices();
    nib_emulator::set_products(3, {1000, 9000, 9000});
    assert_true(product() == third);
    assert_true(read_choices() == kept);
    product(48);                         /* another class */
    assert_true(read_choices() != kept); /* and the first is still there */
    assert_true(product() == third);
}

static void an_algorithm_that_is_gone_is_replaced(void **)
{
    by_algorithm(2);
    nib_emulator::set_products(2, {9000, 1000, 1000});
    const std::vector<float> found = product();
    assert_true(found == by_algorithm(1));
}

/* Whatever the file holds, a product is one of those offered, and the file is good again. */
static void a_damaged_file_costs_its_choices_only(void **)
{
    const std::vector<float> first = by_algorithm(0);
    by_algorithm(2);
    const std::string good = read_choices();
    std::string longer(2 << 20, 'x'), nul = good, other = good;
    nul[nul.size() - 14] = '\0';
    other[0] ^= 1;
    nib_emulator::set_products(3, {1000, 9000, 9000});
    for (const std::string &bad :
         {std::string(), std::string("\n\n"), good.substr(0, good.size() - 30), other, nul, longer,
          good.substr(0, good.find('\n') + 1) + "5 7 300 0 1 1 16 4 4 0 0 ffffffffffffffff nan x\n",
          good.substr(0, good.find('\n') + 1) + "99999999999999999999999 7 300\n"}) {
        write_choices(bad);
        assert_true(product() == first);
        const std::string healed = read_choices();
        assert_true(healed.substr(0, healed.find('\n')) == good.substr(0, good.find('\n')));
        assert_true(product() == first && read_choices() == healed);
    }
    write_choices(good + "rubbish\n"); /* the lines before it count */
    assert_true(product() == by_algorithm(2));
}

static void a_folder_that_cannot_be_written_stops_nothing(void **)
{
    const std::vector<float> second = by_algorithm(1);
    check_ok(nib_file_remove_tree((std::string(folder) + "/nibble").c_str()));
    const std::string in_the_way = std::string(folder) + "/nibble";
    check_ok(nib_file_replace(in_the_way.c_str(), "", 0));
    assert_true(product() == second);
    assert_int_equal(unlink(in_the_way.c_str()), 0);
}

static std::string text_of(const std::string &path)
{
    char *text;
    size_t length;
    check_ok(nib_file_read(path.c_str(), 1 << 20, &text, &length));
    std::string copy(text, length);
    nib_free(text);
    return copy;
}

/* What a run was begun with is what it goes on with, whatever the cache holds by then or the clock says, and the other
 * way round the cache is not the run's; what it has not met yet, it takes from the cache. */
static void a_run_goes_on_with_its_algorithms(void **)
{
    const std::string cache = std::string(folder) + "/nibble", run = std::string(folder) + "/run";
    const std::vector<float> first = by_algorithm(0), third = by_algorithm(2);
    assert_true(product(5, run.c_str()) == third); /* the cache's, copied */
    check_ok(nib_file_remove_tree(cache.c_str()));
    nib_emulator::set_products(3, {1000, 9000, 9000});
    assert_true(product() == first);
    assert_true(product(5, run.c_str()) == third);
    check_ok(nib_file_remove_tree(cache.c_str()));
    assert_true(product(5, run.c_str()) == third);
    assert_true(product() == first);
    const std::vector<float> other = product(48); /* by the first, and in the cache now */
    nib_emulator::set_products(3, {9000, 9000, 1000});
    assert_true(product(48, run.c_str()) == other && product(5, run.c_str()) == third);
    check_ok(nib_file_remove_tree(run.c_str()));
    assert_true(product(5, run.c_str()) == first); /* a run that has nothing */
    check_ok(nib_file_remove_tree(run.c_str()));
}

/* On another card nothing of it can be used, which is said; on the first card again it is. */
static void a_run_on_another_card_says_so(void **)
{
    const std::string run = std::string(folder) + "/run", log = std::string(folder) + "/log";
    by_algorithm(2);
    check_ok(nib_log_to_file(log.c_str()));
    const std::vector<float> third = product(5, run.c_str());
    assert_true(text_of(log).find("the run was begun on") == std::string::npos);
    nib_emulator::set_device(9, 0, 5, size_t{2} << 30);
    nib_emulator::set_products(3, {1000, 9000, 9000});
    assert_true(product(5, run.c_str()) != third);
    const std::string said = text_of(log);
    assert_true(said.find("the run was begun on \"emulated, 4 processors, driver 13000") != std::string::npos);
    assert_true(said.find("this is \"emulated, 5 processors") != std::string::npos);
    nib_emulator::set_device(9, 0, 4, size_t{2} << 30);
    assert_true(product(5, run.c_str()) == third);
    assert_true(text_of(log) == said);
    check_ok(nib_log_to_file(nullptr));
    check_ok(nib_file_remove_tree(run.c_str()));
}

/* Are the weights of a linear of 65 rows decoded in registers for y, or for dx, and so multiplied by a kernel of ours?
 */
static bool decodes(bool backward, uint32_t plain)
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    uint64_t products;
    {
        linear_case linear(128, {{48, 0, true}, {24, 0, false}}, 1);
        strided_matrix x(random_bf16(1, 65 * 128), 65, 128, 8), y(random_bf16(2, 65 * 72), 65, 72, 8);
        ops->use_plain(ops, plain);
        const auto make = [&] {
            check_ok(backward
                         ? ops->linear_backward(ops, &linear.device, x.matrix(), {}, {}, y.matrix(), false, x.matrix())
                         : ops->linear_forward(ops, &linear.device, x.matrix(), {}, {}, y.matrix()));
            check_ok(ops->synchronize(ops));
        };
        make(); /* measured, where both are offered */
        nib_emulator::reset_counters();
        make();
        products = nib_emulator::counters().matrix_products;
    }
    ops->close(ops);
    return products > 0;
}

/* By the emulator's clock a kernel of ours is slower than cublasLt's stand-in, whose times are set. */
static void check_ways(bool backward, nib_cuda_choice kernel)
{
    const std::string cache = std::string(folder) + "/nibble";
    const std::vector<uint64_t> fast(3, 1000), slow(3, uint64_t{1} << 30);
    check_ok(nib_file_remove_tree(cache.c_str()));
    nib_emulator::set_products(3, fast);
    assert_false(decodes(backward, 0));
    nib_emulator::set_products(3, slow); /* what was found is kept */
    assert_false(decodes(backward, 0));
    assert_true(decodes(backward, 1u << NIB_CUDA_MATMUL)); /* without cublasLt there is no question */
    check_ok(nib_file_remove_tree(cache.c_str()));
    assert_true(decodes(backward, 0));
    nib_emulator::set_products(3, fast);
    assert_true(decodes(backward, 0));
    assert_false(decodes(!backward, 0));           /* each has its own choice */
    assert_false(decodes(backward, 1u << kernel)); /* switched off */
    check_ok(nib_file_remove_tree(cache.c_str()));
    nib_emulator::set_products(3, slow);
    nib_emulator::set_device(8, 9, 4, size_t{2} << 30); /* has no such kernel */
    assert_false(decodes(backward, 0));
}

static void weights_are_decoded_for_y_where_that_is_faster(void **) { check_ways(false, NIB_CUDA_NF4_MATMUL_HOPPER); }
static void weights_are_decoded_for_dx_where_that_is_faster(void **)
{
    check_ways(true, NIB_CUDA_NF4_MATMUL_HOPPER_BACKWARD);
}

static void neighbours_are_one_class(void **)
{
    const int64_t sizes[][2] = {{1, 1},     {15, 15},   {16, 16},     {17, 18},
                                {127, 128}, {129, 144}, {4096, 4096}, {4097, 4608}};
    for (const auto &size : sizes) assert_int_equal(nib_matmul_class_size(size[0]), size[1]);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_fastest_is_taken, reset_emulator),
        cmocka_unit_test_setup(a_choice_outlives_its_process, reset_emulator),
        cmocka_unit_test_setup(an_algorithm_that_is_gone_is_replaced, reset_emulator),
        cmocka_unit_test_setup(a_damaged_file_costs_its_choices_only, reset_emulator),
        cmocka_unit_test_setup(a_folder_that_cannot_be_written_stops_nothing, reset_emulator),
        cmocka_unit_test_setup(a_run_goes_on_with_its_algorithms, reset_emulator),
        cmocka_unit_test_setup(a_run_on_another_card_says_so, reset_emulator),
        cmocka_unit_test_setup(weights_are_decoded_for_y_where_that_is_faster, reset_emulator),
        cmocka_unit_test_setup(weights_are_decoded_for_dx_where_that_is_faster, reset_emulator),
        cmocka_unit_test(neighbours_are_one_class),
    };
    if (mkdtemp(folder) == nullptr || setenv("XDG_CACHE_HOME", folder, 1) != 0) return 1;
    const int failed = cmocka_run_group_tests(tests, nullptr, nullptr);
    nib_file_remove_tree(folder);
    return failed;
}
